import math, torch
from torch import nn


class MultiHeadedAttention(nn.Module):
    def __init__(self, n_head, n_feat):
        super().__init__()
        self.d_k, self.h = n_feat // n_head, n_head
        self.linear_q, self.linear_k, self.linear_v, self.linear_out = (nn.Linear(n_feat, n_feat) for _ in range(4))
        self.gate = nn.Linear(n_feat, n_head)

    def forward(self, query, key, value, mask):
        n_batch = query.size(0)
        q = self.linear_q(query).view(n_batch, -1, self.h, self.d_k).transpose(1, 2)
        k = self.linear_k(key).view(n_batch, -1, self.h, self.d_k).transpose(1, 2)
        v = self.linear_v(value).view(n_batch, -1, self.h, self.d_k).transpose(1, 2)
        scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(self.d_k)
        if mask is not None:
            mask = mask.unsqueeze(1).eq(0)
            attn = torch.softmax(scores.masked_fill(mask, torch.finfo(scores.dtype).min), dim=-1).masked_fill(mask, 0.0)
        else:
            attn = torch.softmax(scores, dim=-1)
        x = torch.matmul(attn, v)
        g = torch.sigmoid(self.gate(query) * 2.0)
        hard = (g > 0.5).float()
        g = (g * hard).detach() + (g - g.detach())  # straight-through threshold
        g = g * hard
        x = x * g.transpose(1, 2).unsqueeze(-1)
        return self.linear_out(x.transpose(1, 2).contiguous().view(n_batch, -1, self.h * self.d_k))


class DecoderLayer(nn.Module):
    def __init__(self, d, h):
        super().__init__()
        self.self_attn, self.src_attn = MultiHeadedAttention(h, d), MultiHeadedAttention(h, d)
        self.norm1, self.norm2, self.norm3, self.w1, self.w2 = nn.LayerNorm(d), nn.LayerNorm(d), nn.LayerNorm(d), nn.Linear(d, 64), nn.Linear(64, d)

    def forward(self, tgt, tgt_mask, memory, memory_mask, cache):
        residual, tgt = tgt, self.norm1(tgt)
        tgt_q, tgt_q_mask, residual = tgt[:, -1:, :], tgt_mask[:, -1:, :], residual[:, -1:, :]
        x = residual + self.self_attn(tgt_q, tgt, tgt, tgt_q_mask)
        x = x + self.src_attn(self.norm2(x), memory, memory, memory_mask)
        x = x + self.w2(torch.relu(self.w1(self.norm3(x))))
        return torch.cat([cache, x], dim=1)


class Decoder(nn.Module):
    """forward_one_step: the cache holds each layer's outputs of the tokens before."""
    def __init__(self, d=32, h=4):
        super().__init__()
        self.embed, self.decoders, self.after_norm, self.output_layer = nn.Embedding(40, d), nn.ModuleList([DecoderLayer(d, h) for _ in range(2)]), nn.LayerNorm(d), nn.Linear(d, 40)

    def forward(self, tgt, memory, memory_lens, cache):
        L = tgt.size(1)
        m = torch.tril(torch.ones(L, L, dtype=torch.uint8)).unsqueeze(0)
        mm = (torch.arange(memory.size(1))[None] < memory_lens[:, None]).unsqueeze(1)
        x, new_cache = self.embed(tgt), []
        for i, dec in enumerate(self.decoders):
            x = dec(x, m, memory, mm, cache[i])
            new_cache.append(x)
        y = torch.log_softmax(self.output_layer(self.after_norm(x[:, -1])), dim=-1)
        return y, torch.stack(new_cache)


def build():
    torch.manual_seed(32)
    m = Decoder().eval()
    with torch.no_grad():
        for n, p in m.named_parameters():
            if "gate" in n: p.mul_(3)
    return m

SIZES = dict(batch=2, past=5, frames=8)
def inputs(batch=2, past=5, frames=8):
    lens = torch.full((batch,), frames); lens[0] -= 2
    return dict(tgt=torch.randint(0, 40, (batch, past + 1)), memory=torch.randn(batch, frames, 32), memory_lens=lens, cache=torch.randn(2, batch, past, 32))
DYNAMIC = dict(tgt={0: "batch", 1: "past+1"}, memory={0: "batch", 1: "frames"}, memory_lens={0: "batch"}, cache={1: "batch", 2: "past"})
TRUTH = dict(gated=4, sparse=4, notes="ESPnet decoder step: only the last token asks, cache of outputs, masked softmax refilled with 0, straight-through threshold left in eval")
