"""Point Transformer V3: serialized patches of K points, RPE table, qkv in fp32, top-p head gates."""
import torch, torch.nn.functional as F
from torch import nn


class RPE(nn.Module):
    def __init__(self, num_heads, bound=4):
        super().__init__()
        self.pos_bnd, self.rpe_num = bound, 2 * bound + 1
        self.rpe_table = nn.Parameter(torch.randn(3 * self.rpe_num, num_heads) * 0.5)

    def forward(self, coord):
        idx = coord.clamp(-self.pos_bnd, self.pos_bnd) + self.pos_bnd + torch.arange(3) * self.rpe_num
        out = self.rpe_table.index_select(0, idx.reshape(-1))
        out = out.view(idx.shape + (-1,)).sum(3)
        return out.permute(0, 3, 1, 2)


class SerializedAttention(nn.Module):
    def __init__(self, channels, num_heads, patch_size, top_p=0.6):
        super().__init__()
        self.channels, self.num_heads, self.patch_size, self.top_p = channels, num_heads, patch_size, top_p
        self.scale = (channels // num_heads) ** -0.5
        self.qkv, self.proj = nn.Linear(channels, channels * 3), nn.Linear(channels, channels)
        self.rpe = RPE(num_heads)
        self.head_router = nn.Linear(channels, num_heads)

    def route(self, x):
        p = self.head_router(x).softmax(-1)
        s, i = p.sort(dim=-1, descending=True)
        keep = s.cumsum(-1) - s < self.top_p
        return torch.zeros_like(p).scatter(-1, i, s * keep)

    def forward(self, feat, grid_coord, order, inverse):
        H, K, C = self.num_heads, self.patch_size, self.channels
        qkv = self.qkv(feat)[order]
        q, k, v = qkv.reshape(-1, K, 3, H, C // H).permute(2, 0, 3, 1, 4).unbind(dim=0)
        attn = (q * self.scale) @ k.transpose(-2, -1)
        g = grid_coord[order].reshape(-1, K, 3)
        attn = attn + self.rpe(g.unsqueeze(2) - g.unsqueeze(1))
        attn = F.softmax(attn, dim=-1).to(qkv.dtype)
        out = (attn @ v).transpose(1, 2).reshape(-1, H, C // H)
        out = out * self.route(feat)[order].unsqueeze(-1)
        out = out.reshape(-1, C)[inverse]
        return self.proj(out)


class PTv3(nn.Module):
    def __init__(self, c=32, h=4, k=4):
        super().__init__()
        self.k = k
        self.embedding = nn.Linear(4, c)
        self.norms = nn.ModuleList([nn.LayerNorm(c) for _ in range(2)])
        self.attns = nn.ModuleList([SerializedAttention(c, h, k) for _ in range(2)])

    def forward(self, feat, grid_coord):
        code = grid_coord[:, 0] * 64 + grid_coord[:, 1] * 8 + grid_coord[:, 2]
        order = torch.argsort(code)
        inverse = torch.argsort(order)
        x = self.embedding(feat)
        for n, a in zip(self.norms, self.attns):
            x = x + a(n(x), grid_coord, order, inverse)
        return x


def build():
    torch.manual_seed(16)
    m = PTv3()
    for a in m.attns:
        nn.init.normal_(a.head_router.weight, std=0.5)
    return m.eval()


SIZES = dict(patches=3)


def inputs(patches=3):
    n = patches * 4
    c = torch.randperm(512)[:n]
    return dict(feat=torch.randn(n, 4), grid_coord=torch.stack([c // 64, c // 8 % 8, c % 8], -1))


DYNAMIC = dict(feat={0: "4*patches"}, grid_coord={0: "4*patches"})
TRUTH = dict(gated=2, sparse=2, notes="gates permuted by the serialisation; n is a multiple of the patch size; top-p with sort and cumsum")
