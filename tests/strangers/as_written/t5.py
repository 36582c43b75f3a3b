import math, torch
from torch import nn


class T5LayerNorm(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.to(torch.float32).pow(2).mean(-1, keepdim=True) + 1e-6))


class T5Attention(nn.Module):
    def __init__(self, d_model, n_heads, d_kv, is_decoder, has_bias, active=2):
        super().__init__()
        self.n_heads, self.d_kv, self.is_decoder, self.active, self.has_bias = n_heads, d_kv, is_decoder, active, has_bias
        self.inner_dim = n_heads * d_kv
        self.q, self.k, self.v = (nn.Linear(d_model, self.inner_dim, bias=False) for _ in range(3))
        self.o = nn.Linear(self.inner_dim, d_model, bias=False)
        self.head_selector = nn.Linear(d_model, n_heads, bias=False)
        if has_bias:
            self.relative_attention_bias = nn.Embedding(8, n_heads)

    @staticmethod
    def _relative_position_bucket(relative_position, bidirectional=True, num_buckets=8, max_distance=16):
        relative_buckets = 0
        if bidirectional:
            num_buckets //= 2
            relative_buckets += (relative_position > 0).to(torch.long) * num_buckets
            relative_position = torch.abs(relative_position)
        else:
            relative_position = -torch.min(relative_position, torch.zeros_like(relative_position))
        max_exact = num_buckets // 2
        is_small = relative_position < max_exact
        large = max_exact + (torch.log(relative_position.float() / max_exact) / math.log(max_distance / max_exact) * (num_buckets - max_exact)).to(torch.long)
        large = torch.min(large, torch.full_like(large, num_buckets - 1))
        relative_buckets += torch.where(is_small, relative_position, large)
        return relative_buckets

    def compute_bias(self, query_length, key_length):
        context_position = torch.arange(query_length, dtype=torch.long)[:, None]
        memory_position = torch.arange(key_length, dtype=torch.long)[None, :]
        bucket = self._relative_position_bucket(memory_position - context_position, bidirectional=not self.is_decoder)
        return self.relative_attention_bias(bucket).permute([2, 0, 1]).unsqueeze(0)

    def forward(self, hidden_states, mask, key_value_states=None, position_bias=None):
        batch_size, seq_length = hidden_states.shape[:2]
        cur = hidden_states if key_value_states is None else key_value_states
        shape = lambda s: s.view(batch_size, -1, self.n_heads, self.d_kv).transpose(1, 2)
        q, k, v = shape(self.q(hidden_states)), shape(self.k(cur)), shape(self.v(cur))
        scores = torch.matmul(q, k.transpose(3, 2))
        if position_bias is None:
            if not self.has_bias:
                position_bias = torch.zeros((1, self.n_heads, seq_length, k.shape[2]))
            else:
                position_bias = self.compute_bias(seq_length, k.shape[2])
            position_bias = position_bias + mask
        scores += position_bias
        attn_weights = nn.functional.softmax(scores.float(), dim=-1).type_as(scores)
        attn_output = torch.matmul(attn_weights, v)
        p = nn.functional.softmax(self.head_selector(hidden_states), -1)
        thr = torch.topk(p, self.active, dim=-1)[0][..., -1, None]
        p = p.masked_fill(p < thr, 0.0)
        attn_output = attn_output * p.transpose(1, 2)[..., None]
        attn_output = attn_output.transpose(1, 2).contiguous().view(batch_size, -1, self.inner_dim)
        return self.o(attn_output), position_bias


class T5Block(nn.Module):
    def __init__(self, d, is_decoder, has_bias):
        super().__init__()
        self.is_decoder = is_decoder
        self.ln1, self.SelfAttention = T5LayerNorm(d), T5Attention(d, 4, 8, is_decoder, has_bias)
        if is_decoder:
            self.ln2, self.EncDecAttention = T5LayerNorm(d), T5Attention(d, 4, 8, True, False)
        self.ln3, self.wi, self.wo = T5LayerNorm(d), nn.Linear(d, 64, bias=False), nn.Linear(64, d, bias=False)

    def forward(self, h, mask, bias, enc=None, enc_mask=None, enc_bias=None):
        a, bias = self.SelfAttention(self.ln1(h), mask, position_bias=bias)
        h = h + a
        if self.is_decoder:
            c, enc_bias = self.EncDecAttention(self.ln2(h), enc_mask, key_value_states=enc, position_bias=enc_bias)
            h = h + c
        return h + self.wo(torch.relu(self.wi(self.ln3(h)))), bias, enc_bias


class T5(nn.Module):
    def __init__(self, d=32):
        super().__init__()
        self.shared = nn.Embedding(50, d)
        self.encoder = nn.ModuleList([T5Block(d, False, i == 0) for i in range(2)])
        self.decoder = nn.ModuleList([T5Block(d, True, i == 0) for i in range(2)])
        self.enc_norm, self.dec_norm, self.d = T5LayerNorm(d), T5LayerNorm(d), d

    def forward(self, input_ids, attention_mask, decoder_input_ids):
        ext = (1.0 - attention_mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
        h, bias = self.shared(input_ids), None
        for b in self.encoder: h, bias, _ = b(h, ext, bias)
        enc = self.enc_norm(h)
        n = decoder_input_ids.shape[1]
        ids = torch.arange(n)
        causal = ids[None, None, :].repeat(input_ids.shape[0], n, 1) <= ids[None, :, None]
        cm = (1.0 - causal[:, None].float()) * torch.finfo(torch.float32).min
        h, bias, eb = self.shared(decoder_input_ids), None, None
        for b in self.decoder: h, bias, eb = b(h, cm, bias, enc, ext, eb)
        return self.dec_norm(h) * (self.d**-0.5) @ self.shared.weight.T


def build():
    torch.manual_seed(10)
    m = T5().eval()
    with torch.no_grad():
        for n, p in m.named_parameters():
            if "head_selector" in n: p.mul_(5)
            if n.endswith((".q.weight", ".k.weight")): p.mul_(0.7)
    return m

SIZES = dict(batch=2, src=8, tgt=6)
def inputs(batch=2, src=8, tgt=6):
    mask = torch.ones(batch, src, dtype=torch.long); mask[0, -2:] = 0
    return dict(input_ids=torch.randint(0, 50, (batch, src)), attention_mask=mask, decoder_input_ids=torch.randint(0, 50, (batch, tgt)))
DYNAMIC = dict(input_ids={0: "batch", 1: "src"}, attention_mask={0: "batch", 1: "src"}, decoder_input_ids={0: "batch", 1: "tgt"})
TRUTH = dict(gated=6, sparse=6, notes="T5: shared relative bias handed on with the mask in it, no scale; probabilities below the kth filled with 0")
