import math, torch
from torch import nn


class RelPositionMultiHeadedAttention(nn.Module):
    def __init__(self, n_head, n_feat, top_k):
        super().__init__()
        self.d_k, self.h, self.top_k = n_feat // n_head, n_head, top_k
        self.linear_q, self.linear_k, self.linear_v, self.linear_out = (nn.Linear(n_feat, n_feat) for _ in range(4))
        self.linear_pos = nn.Linear(n_feat, n_feat, bias=False)
        self.pos_bias_u, self.pos_bias_v = nn.Parameter(torch.randn(n_head, self.d_k) * 0.3), nn.Parameter(torch.randn(n_head, self.d_k) * 0.3)
        self.head_router = nn.Linear(n_feat, n_head)

    def rel_shift(self, x):
        zero_pad = torch.zeros((x.size()[0], x.size()[1], x.size()[2], 1), device=x.device, dtype=x.dtype)
        x_padded = torch.cat([zero_pad, x], dim=-1)
        x_padded = x_padded.view(x.size()[0], x.size()[1], x.size(3) + 1, x.size(2))
        return x_padded[:, :, 1:].view_as(x)[:, :, :, : x.size(-1) // 2 + 1]

    def forward_attention(self, value, scores, mask, query):
        n_batch = value.size(0)
        mask = mask.unsqueeze(1).eq(0)
        scores = scores.masked_fill(mask, -float("inf"))
        attn = torch.softmax(scores, dim=-1).masked_fill(mask, 0.0)
        x = torch.matmul(attn, value)
        x = x.transpose(1, 2).contiguous()
        prob = torch.softmax(self.head_router(query), dim=-1)
        _, index = prob.topk(self.top_k, dim=-1)
        keep = torch.nn.functional.one_hot(index, self.h).sum(dim=-2).to(prob.dtype)
        prob = prob * keep
        prob = prob / prob.sum(dim=-1, keepdim=True).clamp_min(1e-6)
        x = x * prob.unsqueeze(-1)
        return self.linear_out(x.view(n_batch, -1, self.h * self.d_k))

    def forward(self, query, key, value, mask, pos_emb):
        n_batch = query.size(0)
        q = self.linear_q(query).view(n_batch, -1, self.h, self.d_k)
        k = self.linear_k(key).view(n_batch, -1, self.h, self.d_k).transpose(1, 2)
        v = self.linear_v(value).view(n_batch, -1, self.h, self.d_k).transpose(1, 2)
        p = self.linear_pos(pos_emb).view(pos_emb.size(0), -1, self.h, self.d_k).transpose(1, 2)
        q_with_bias_u = (q + self.pos_bias_u).transpose(1, 2)
        q_with_bias_v = (q + self.pos_bias_v).transpose(1, 2)
        matrix_ac = torch.matmul(q_with_bias_u, k.transpose(-2, -1))
        matrix_bd = self.rel_shift(torch.matmul(q_with_bias_v, p.transpose(-2, -1)))
        scores = (matrix_ac + matrix_bd) / math.sqrt(self.d_k)
        return self.forward_attention(v, scores, mask, query)


class ConformerLayer(nn.Module):
    def __init__(self, d, h):
        super().__init__()
        self.ffm, self.ff = (nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 2 * d), nn.SiLU(), nn.Linear(2 * d, d)) for _ in range(2))
        self.norm_mha, self.self_attn = nn.LayerNorm(d), RelPositionMultiHeadedAttention(h, d, 2)
        self.norm_conv, self.pw1, self.dw, self.bn, self.pw2 = nn.LayerNorm(d), nn.Conv1d(d, 2 * d, 1), nn.Conv1d(d, d, 5, padding=2, groups=d), nn.BatchNorm1d(d), nn.Conv1d(d, d, 1)
        self.norm_final = nn.LayerNorm(d)

    def forward(self, x, mask, pos_emb, mask_pad):
        x = x + 0.5 * self.ffm(x)
        y = self.norm_mha(x)
        x = x + self.self_attn(y, y, y, mask, pos_emb)
        z = self.norm_conv(x).transpose(1, 2).masked_fill(~mask_pad, 0.0)
        z = nn.functional.glu(self.pw1(z), dim=1)
        z = self.pw2(nn.functional.silu(self.bn(self.dw(z)))).masked_fill(~mask_pad, 0.0)
        x = x + z.transpose(1, 2)
        x = x + 0.5 * self.ff(x)
        return self.norm_final(x)


class Encoder(nn.Module):
    def __init__(self, d=32, h=4):
        super().__init__()
        self.embed, self.encoders, self.after_norm, self.d = nn.Linear(20, d), nn.ModuleList([ConformerLayer(d, h) for _ in range(2)]), nn.LayerNorm(d), d

    def pos(self, t):
        position = torch.arange(t - 1, -t, -1).float().unsqueeze(1)
        div = torch.exp(torch.arange(0, self.d, 2).float() * -(math.log(10000.0) / self.d))
        return torch.stack([torch.sin(position * div), torch.cos(position * div)], -1).flatten(1).unsqueeze(0)

    def forward(self, xs, xs_lens):
        T = xs.size(1)
        masks = ~(torch.arange(0, T).unsqueeze(0) >= xs_lens.unsqueeze(-1)).unsqueeze(1)  # (B, 1, T)
        xs = self.embed(xs) * math.sqrt(self.d)
        pos_emb = self.pos(T)
        for layer in self.encoders: xs = layer(xs, masks, pos_emb, masks)
        return self.after_norm(xs), masks


def build():
    torch.manual_seed(14)
    m = Encoder().eval()
    with torch.no_grad():
        for l in m.encoders: l.self_attn.head_router.weight.mul_(6)
    return m

SIZES = dict(batch=2, frames=11)
def inputs(batch=2, frames=11):
    lens = torch.full((batch,), frames); lens[0] -= 3
    return dict(xs=torch.randn(batch, frames, 20), xs_lens=lens)
DYNAMIC = dict(xs={0: "batch", 1: "frames"}, xs_lens={0: "batch"})
TRUTH = dict(gated=2, sparse=2, notes="WeNet/ESPnet conformer: rel_shift by padded view, pos_bias_u/v, masks from lengths, one_hot sum for the chosen")
