import torch
from torch import nn
import torch.nn.functional as F


class _ScaledDotProductAttention(nn.Module):
    def __init__(self, d_model, n_heads, res_attention=True):
        super().__init__()
        self.scale, self.res_attention = nn.Parameter(torch.tensor((d_model // n_heads) ** -0.5), requires_grad=False), res_attention

    def forward(self, q, k, v, prev=None):
        attn_scores = torch.matmul(q, k) * self.scale
        if prev is not None: attn_scores = attn_scores + prev
        attn_weights = F.softmax(attn_scores, dim=-1)
        return torch.matmul(attn_weights, v), attn_weights, attn_scores


class _MultiheadAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads, self.d_k, self.d_v = n_heads, d_model // n_heads, d_model // n_heads
        self.W_Q, self.W_K, self.W_V = (nn.Linear(d_model, d_model) for _ in range(3))
        self.sdp_attn = _ScaledDotProductAttention(d_model, n_heads)
        self.to_out = nn.Sequential(nn.Linear(d_model, d_model), nn.Dropout(0.1))
        self.gate = nn.Linear(d_model, n_heads)

    def forward(self, Q, prev=None):
        bs = Q.size(0)
        q_s = self.W_Q(Q).view(bs, -1, self.n_heads, self.d_k).transpose(1, 2)
        k_s = self.W_K(Q).view(bs, -1, self.n_heads, self.d_k).permute(0, 2, 3, 1)
        v_s = self.W_V(Q).view(bs, -1, self.n_heads, self.d_v).transpose(1, 2)
        output, attn_weights, attn_scores = self.sdp_attn(q_s, k_s, v_s, prev=prev)
        # one gate for each series (sample x channel), from its mean patch
        g = F.softmax(self.gate(Q.mean(dim=1)), dim=-1)
        top = g.topk(2, dim=-1)
        g = torch.zeros_like(g).scatter(1, top.indices, top.values)
        output = output * g[:, :, None, None]
        output = output.transpose(1, 2).contiguous().view(bs, -1, self.n_heads * self.d_v)
        return self.to_out(output), attn_scores


class TSTEncoderLayer(nn.Module):
    def __init__(self, d, h):
        super().__init__()
        self.self_attn = _MultiheadAttention(d, h)
        self.norm_attn, self.norm_ffn = nn.BatchNorm1d(d), nn.BatchNorm1d(d)
        self.ff = nn.Sequential(nn.Linear(d, 64), nn.GELU(), nn.Linear(64, d))

    def forward(self, src, prev=None):
        src2, scores = self.self_attn(src, prev)
        src = self.norm_attn((src + src2).transpose(1, 2)).transpose(1, 2)
        return self.norm_ffn((src + self.ff(src)).transpose(1, 2)).transpose(1, 2), scores


class PatchTST(nn.Module):
    def __init__(self, d=32, h=4, patch_len=8, stride=4, context=32, pred=6):
        super().__init__()
        self.patch_len, self.stride, self.pred = patch_len, stride, pred
        self.pad, self.num = nn.ReplicationPad1d((0, stride)), (context - patch_len) // stride + 2
        self.W_P, self.W_pos = nn.Linear(patch_len, d), nn.Parameter(torch.randn(self.num, d) * 0.1)
        self.layers = nn.ModuleList([TSTEncoderLayer(d, h) for _ in range(2)])
        self.head = nn.Linear(d * self.num, pred)

    def forward(self, z):  # [bs, context, nvars]
        mean, std = z.mean(1, keepdim=True), torch.sqrt(z.var(dim=1, keepdim=True, unbiased=False) + 1e-5)
        x = ((z - mean) / std).permute(0, 2, 1)
        x = self.pad(x).unfold(dimension=-1, size=self.patch_len, step=self.stride)
        n_vars = x.shape[1]
        x = self.W_P(x)
        u = torch.reshape(x, (x.shape[0] * x.shape[1], x.shape[2], x.shape[3])) + self.W_pos
        scores = None
        for mod in self.layers: u, scores = mod(u, prev=scores)
        u = torch.reshape(u, (-1, n_vars, u.shape[-2], u.shape[-1])).permute(0, 1, 3, 2)
        return self.head(u.flatten(start_dim=-2)).permute(0, 2, 1) * std + mean


def build():
    torch.manual_seed(17)
    m = PatchTST().eval()
    with torch.no_grad():
        for l in m.layers: l.self_attn.gate.weight.mul_(10)
    return m

SIZES = dict(batch=2, vars=3)
def inputs(batch=2, vars=3): return dict(z=torch.randn(batch, 32, vars).cumsum(1))
DYNAMIC = dict(z={0: "batch", 2: "vars"})
TRUTH = dict(gated=2, sparse=2, notes="PatchTST: scores of the layer before added (residual attention), one gate vector per series, softmax top-k not renormalised")
