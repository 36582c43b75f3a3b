"""Zipformer (icefall): attention weights are computed once by a module and used by two SelfAttention modules; time first, heads first [heads, batch, time, d]; relative positions by gather; whitening and balancers are identities in eval; gates for each head in both."""
import torch
from torch import nn


class CompactRelPositionalEncoding(nn.Module):
    def __init__(self, embed_dim): super().__init__(); self.embed_dim = embed_dim
    def forward(self, x):
        T = x.size(0)
        t = torch.arange(-(T - 1), T).to(torch.float32).unsqueeze(1)
        freqs = 1 + torch.arange(self.embed_dim // 2)
        c = self.embed_dim ** 0.5
        t = c * t.sign() * ((t.abs() + c).log() - torch.tensor(c).log())
        a = (t / (self.embed_dim / (2 * torch.pi))).atan()
        pe = torch.stack([(a * freqs).cos(), (a * freqs).sin()], -1).flatten(1)
        return torch.cat([pe[:, :-1], torch.ones_like(pe[:, -1:])], -1).unsqueeze(0)


class RelPositionMultiheadAttentionWeights(nn.Module):
    def __init__(self, embed_dim, pos_dim, num_heads, query_head_dim, pos_head_dim):
        super().__init__()
        self.num_heads, self.query_head_dim, self.pos_head_dim = num_heads, query_head_dim, pos_head_dim
        self.in_proj = nn.Linear(embed_dim, (2 * query_head_dim + pos_head_dim) * num_heads)
        self.linear_pos = nn.Linear(pos_dim, num_heads * pos_head_dim, bias=False)

    def forward(self, x, pos_emb, key_padding_mask=None):
        x = self.in_proj(x)
        seq_len, batch_size, _ = x.shape
        dim = self.query_head_dim * self.num_heads
        q, k, p = x[..., :dim], x[..., dim:2 * dim], x[..., 2 * dim:]
        q = q.reshape(seq_len, batch_size, self.num_heads, self.query_head_dim).permute(2, 1, 0, 3)
        p = p.reshape(seq_len, batch_size, self.num_heads, self.pos_head_dim).permute(2, 1, 0, 3)
        k = k.reshape(seq_len, batch_size, self.num_heads, self.query_head_dim).permute(2, 1, 3, 0)
        attn_scores = torch.matmul(q, k)
        pos_emb = self.linear_pos(pos_emb)
        seq_len2 = 2 * seq_len - 1
        pos_emb = pos_emb.reshape(-1, seq_len2, self.num_heads, self.pos_head_dim).permute(2, 0, 3, 1)
        pos_scores = torch.matmul(p, pos_emb)
        num_heads, batch_size, time1, n = pos_scores.shape
        rows = torch.arange(start=time1 - 1, end=-1, step=-1)
        cols = torch.arange(seq_len)
        rows = rows.repeat(batch_size * num_heads).unsqueeze(-1)
        indexes = rows + cols
        pos_scores = torch.gather(pos_scores.reshape(-1, n), dim=1, index=indexes)
        attn_scores = attn_scores + pos_scores.reshape(num_heads, batch_size, time1, seq_len)
        if key_padding_mask is not None:
            attn_scores = attn_scores.masked_fill(key_padding_mask.unsqueeze(1), -1000)
        return attn_scores.softmax(dim=-1)


class SelfAttention(nn.Module):
    def __init__(self, embed_dim, num_heads, value_head_dim):
        super().__init__()
        self.in_proj, self.out_proj = nn.Linear(embed_dim, num_heads * value_head_dim), nn.Linear(num_heads * value_head_dim, embed_dim)
        self.router = nn.Linear(embed_dim, num_heads)

    def forward(self, x, attn_weights):
        seq_len, batch_size, _ = x.shape
        num_heads = attn_weights.shape[0]
        logits = self.router(x)  # time, batch, heads
        v = self.in_proj(x).reshape(seq_len, batch_size, num_heads, -1).permute(2, 1, 0, 3)
        y = torch.matmul(attn_weights, v)  # heads, batch, time, d
        gate = logits.sigmoid() * (logits > logits.mean(-1, keepdim=True))
        y = y * gate.permute(2, 1, 0).unsqueeze(-1)
        y = y.permute(2, 1, 0, 3).contiguous().view(seq_len, batch_size, -1)
        return self.out_proj(y)


class ConvolutionModule(nn.Module):
    def __init__(self, c, k=5): super().__init__(); self.in_proj, self.dw, self.out_proj = nn.Linear(c, 2 * c), nn.Conv1d(c, c, k, groups=c, padding=k // 2), nn.Linear(c, c)
    def forward(self, x, key_padding_mask):
        x, s = self.in_proj(x).chunk(2, dim=2)
        x = (x * s.sigmoid()).permute(1, 2, 0)
        x = x.masked_fill(key_padding_mask.unsqueeze(1).expand_as(x), 0.0)
        return self.out_proj(nn.functional.silu(self.dw(x).permute(2, 0, 1) - 1.0))


class ZipformerEncoderLayer(nn.Module):
    def __init__(self, d, h):
        super().__init__()
        self.self_attn_weights = RelPositionMultiheadAttentionWeights(d, 16, h, 8, 4)
        self.self_attn1, self.self_attn2 = SelfAttention(d, h, 12), SelfAttention(d, h, 12)
        self.ff1, self.ff2 = (nn.Sequential(nn.Linear(d, 64), nn.SiLU(), nn.Linear(64, d)) for _ in range(2))
        self.conv1, self.conv2 = ConvolutionModule(d), ConvolutionModule(d)
        self.bypass_scale, self.log_scale = nn.Parameter(torch.full((d,), 0.5)), nn.Parameter(torch.zeros(()))

    def forward(self, src, pos_emb, mask):
        src_orig = src
        w = self.self_attn_weights(src, pos_emb, mask)
        src = src + self.ff1(src)
        src = src + self.self_attn1(src, w)
        src = src + self.conv1(src, mask)
        src = src + self.ff2(src)
        src = src + self.self_attn2(src, w)
        src = src + self.conv2(src, mask)
        src = src * (torch.mean(src ** 2, dim=-1, keepdim=True) + 1e-5) ** -0.5 * self.log_scale.exp()
        return src_orig + (src - src_orig) * self.bypass_scale


class Zipformer(nn.Module):
    def __init__(self, d=32, h=4):
        super().__init__()
        self.embed = nn.Linear(20, d)
        self.encoder_pos, self.layers = CompactRelPositionalEncoding(16), nn.ModuleList([ZipformerEncoderLayer(d, h) for _ in range(2)])
    def forward(self, feats, lens):
        x = self.embed(feats).permute(1, 0, 2)
        mask = torch.arange(x.shape[0]) >= lens.unsqueeze(-1)
        pos = self.encoder_pos(x)
        for layer in self.layers: x = layer(x, pos, mask)
        return x.permute(1, 0, 2)


def build():
    torch.manual_seed(102)
    return Zipformer().eval()

SIZES = dict(batch=2, time=11)
def inputs(batch=2, time=11):
    lens = torch.full((batch,), time)
    lens[0] = time - 3
    return dict(feats=torch.randn(batch, time, 20), lens=lens)
DYNAMIC = dict(feats={0: "batch", 1: "time"}, lens={0: "batch"})
TRUTH = dict(gated=4, sparse=4, notes="Zipformer: one module's attention weights are used by two attentions with gates of their own; scores of both are one softmax")
