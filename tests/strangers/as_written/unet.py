"""guided-diffusion: QKVAttentionLegacy, conv1d qkv, heads in the batch, channels first; gates by timestep embedding and by position (conv1d router)."""
import math, torch, torch.nn.functional as F
from torch import nn


class QKVAttentionLegacy(nn.Module):
    def __init__(self, n_heads):
        super().__init__()
        self.n_heads = n_heads

    def forward(self, qkv, gate):
        bs, width, length = qkv.shape
        ch = width // (3 * self.n_heads)
        q, k, v = qkv.reshape(bs * self.n_heads, ch * 3, length).split(ch, dim=1)
        scale = 1 / math.sqrt(math.sqrt(ch))
        weight = torch.einsum("bct,bcs->bts", q * scale, k * scale)
        weight = torch.softmax(weight.float(), dim=-1).type(weight.dtype)
        a = torch.einsum("bts,bcs->bct", weight, v)
        a = a.reshape(bs, self.n_heads, ch, length) * gate.unsqueeze(2)
        return a.reshape(bs, -1, length)


class AttentionBlock(nn.Module):
    def __init__(self, ch, heads, emb, k):
        super().__init__()
        self.k = k
        self.norm, self.qkv, self.proj_out = nn.GroupNorm(8, ch), nn.Conv1d(ch, ch * 3, 1), nn.Conv1d(ch, ch, 1)
        self.attention = QKVAttentionLegacy(heads)
        self.router, self.emb_router = nn.Conv1d(ch, heads, 1), nn.Linear(emb, heads)

    def forward(self, x, emb):
        b, c, *spatial = x.shape
        x = x.reshape(b, c, -1)
        h = self.norm(x)
        s = (self.router(h) + self.emb_router(F.silu(emb))[..., None]).softmax(dim=1)
        keep = torch.zeros_like(s).scatter(1, s.topk(self.k, dim=1)[1], 1.0)
        return (x + self.proj_out(self.attention(self.qkv(h), s * keep))).reshape(b, c, *spatial)


class UNet(nn.Module):
    def __init__(self, ch=32, emb=16):
        super().__init__()
        self.time = nn.Linear(8, emb)
        self.c_in, self.down, self.c_out = nn.Conv2d(3, ch, 3, padding=1), nn.Conv2d(ch, ch, 3, 2, 1), nn.Conv2d(2 * ch, 3, 3, padding=1)
        self.a1, self.mid = AttentionBlock(ch, 4, emb, 2), AttentionBlock(ch, 4, emb, 2)
        self.up = nn.Upsample(scale_factor=2, mode="nearest")

    def forward(self, x, timesteps):
        f = torch.exp(-math.log(1000) * torch.arange(4).float() / 4)
        a = timesteps[:, None].float() * f[None]
        emb = self.time(torch.cat([a.cos(), a.sin()], -1))
        h = self.a1(self.c_in(x), emb)
        m = self.mid(self.down(h), emb)
        return self.c_out(torch.cat([self.up(m), h], 1))


def build():
    torch.manual_seed(29)
    m = UNet()
    for a in (m.a1, m.mid):
        nn.init.normal_(a.router.weight, std=0.4)
        nn.init.normal_(a.emb_router.weight, std=0.8)
    return m.eval()


SIZES = dict(batch=2)


def inputs(batch=2):
    return dict(x=torch.randn(batch, 3, 8, 8), timesteps=torch.randint(0, 1000, (batch,)))


DYNAMIC = dict(x={0: "batch"}, timesteps={0: "batch"})
TRUTH = dict(gated=2, sparse=2, notes="channels first, heads in batch for attention, gates [b, heads, length]")
