import torch
from torch import nn


class HardConcrete(nn.Module):
    """L0 gates: static per head, or predicted for each token."""
    def __init__(self, n, d=None, gamma=-0.1, zeta=1.1, beta=2 / 3):
        super().__init__()
        self.gamma, self.zeta, self.beta = gamma, zeta, beta
        self.log_alpha = nn.Parameter(torch.randn(n) * 3) if d is None else nn.Linear(d, n)

    def forward(self, x=None):
        la = self.log_alpha if x is None else self.log_alpha(x)
        if self.training:
            u = torch.rand_like(la).clamp(1e-6, 1 - 1e-6)
            s = torch.sigmoid((u.log() - (1 - u).log() + la) / self.beta)
        else:
            s = torch.sigmoid(la)
        return (s * (self.zeta - self.gamma) + self.gamma).clamp(0.0, 1.0)


class MHA(nn.Module):
    """fairseq layout: time x batch x channel"""
    def __init__(self, d, h, static):
        super().__init__()
        self.h, self.hd, self.static = h, d // h, static
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(d, d) for _ in range(4))
        self.gate = HardConcrete(h, None if static else d)

    def forward(self, query, key_padding_mask):
        tgt_len, bsz, d = query.size()
        q = self.q_proj(query) * self.hd**-0.5
        k, v = self.k_proj(query), self.v_proj(query)
        q = q.contiguous().view(tgt_len, bsz * self.h, self.hd).transpose(0, 1)
        k = k.contiguous().view(-1, bsz * self.h, self.hd).transpose(0, 1)
        v = v.contiguous().view(-1, bsz * self.h, self.hd).transpose(0, 1)
        w = torch.bmm(q, k.transpose(1, 2))
        w = w.view(bsz, self.h, tgt_len, -1).masked_fill(key_padding_mask.unsqueeze(1).unsqueeze(2), float("-inf")).view(bsz * self.h, tgt_len, -1)
        attn = torch.bmm(torch.softmax(w.float(), -1).type_as(w), v)
        if self.static:
            attn = attn.view(bsz, self.h, tgt_len, self.hd) * self.gate().view(1, -1, 1, 1)
            attn = attn.view(bsz * self.h, tgt_len, self.hd)
            attn = attn.transpose(0, 1).contiguous().view(tgt_len, bsz, d)
        else:
            attn = attn.transpose(0, 1).contiguous().view(tgt_len, bsz, self.h, self.hd)
            attn = (attn * self.gate(query).unsqueeze(-1)).view(tgt_len, bsz, d)
        return self.out_proj(attn)


class Layer(nn.Module):
    def __init__(self, d, static):
        super().__init__()
        self.self_attn, self.n1, self.n2, self.fc1, self.fc2 = MHA(d, 8, static), nn.LayerNorm(d), nn.LayerNorm(d), nn.Linear(d, 64), nn.Linear(64, d)

    def forward(self, x, p):
        x = self.n1(x + self.self_attn(x, p))
        return self.n2(x + self.fc2(torch.relu(self.fc1(x))))


class HubertLike(nn.Module):
    def __init__(self, d=64):
        super().__init__()
        self.conv, self.proj = nn.Conv1d(1, 16, 8, stride=4), nn.Linear(16, d)
        self.layers = nn.ModuleList([Layer(d, True), Layer(d, False)])

    def forward(self, source, padding_mask):
        x = nn.functional.gelu(self.conv(source.unsqueeze(1))).transpose(1, 2)
        x = self.proj(x)
        x = x.masked_fill(padding_mask.unsqueeze(-1), 0).transpose(0, 1)
        for l in self.layers: x = l(x, padding_mask)
        return x.transpose(0, 1)


def build():
    torch.manual_seed(22)
    m = HubertLike().eval()
    with torch.no_grad(): m.layers[1].self_attn.gate.log_alpha.weight.mul_(8)
    return m

SIZES = dict(batch=2, n=9)
def inputs(batch=2, n=9):
    p = torch.zeros(batch, n, dtype=torch.bool); p[0, -2:] = True
    return dict(source=torch.randn(batch, 4 * n + 4), padding_mask=p)
DYNAMIC = dict(source={0: "batch", 1: "4*n+4"}, padding_mask={0: "batch", 1: "n"})
INVALID = "padding_mask"
TRUTH = dict(gated=2, sparse=2, notes="HuBERT in fairseq layout (T B C, heads in the batch); first layer's L0 gates are the same for all tokens (pruned heads), second predicts hard concrete gates for each token")
