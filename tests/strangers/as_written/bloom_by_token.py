import math, torch
from torch import nn


def build_alibi_tensor(attention_mask, num_heads):
    slopes = torch.pow(2.0 ** (-(2.0 ** -(math.log2(num_heads) - 3))), torch.arange(1, 1 + num_heads).float())
    arange_tensor = ((attention_mask.cumsum(dim=-1) - 1) * attention_mask)[:, None, :]
    alibi = slopes[..., None] * arange_tensor
    return alibi.reshape(attention_mask.shape[0] * num_heads, 1, attention_mask.shape[1])


class BloomAttention(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.num_heads, self.head_dim, self.hidden_size = heads, d // heads, d
        self.inv_norm_factor, self.beta = 1.0 / math.sqrt(self.head_dim), 1.0
        self.query_key_value, self.dense = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.token_table = nn.Embedding(60, heads)  # hash routing: which heads a token has depends on its id only
        self.pretraining_tp = 2

    def _merge_heads(self, x, gate):
        batch_size_and_num_heads, seq_length, _ = x.shape
        batch_size = batch_size_and_num_heads // self.num_heads
        x = x.view(batch_size, self.num_heads, seq_length, self.head_dim)
        x = x * gate.permute(0, 2, 1).unsqueeze(-1)
        x = x.permute(0, 2, 1, 3)
        return x.reshape(batch_size, seq_length, self.num_heads * self.head_dim)

    def forward(self, hidden_states, residual, alibi, attention_mask, input_ids):
        batch_size, q_length, _ = hidden_states.shape
        fused = self.query_key_value(hidden_states).view(batch_size, q_length, self.num_heads, 3, self.head_dim)
        query_layer, key_layer, value_layer = fused[..., 0, :].transpose(1, 2), fused[..., 1, :].transpose(1, 2), fused[..., 2, :].transpose(1, 2)
        query_layer = query_layer.reshape(batch_size * self.num_heads, -1, self.head_dim)
        key_layer = key_layer.reshape(batch_size * self.num_heads, -1, self.head_dim).transpose(-1, -2)
        value_layer = value_layer.reshape(batch_size * self.num_heads, -1, self.head_dim)
        scores = alibi.baddbmm(batch1=query_layer, batch2=key_layer, beta=self.beta, alpha=self.inv_norm_factor)
        attn_weights = scores.view(batch_size, self.num_heads, q_length, -1) + attention_mask
        probs = torch.softmax(attn_weights, dim=-1, dtype=torch.float32).to(query_layer.dtype)
        context = torch.bmm(probs.view(batch_size * self.num_heads, q_length, -1), value_layer)
        gate = self.token_table(input_ids).clamp(min=0)
        context = self._merge_heads(context, gate)
        # tensor parallel emulation, as with pretraining_tp > 1
        slices = self.hidden_size / self.pretraining_tp
        out = torch.zeros_like(context)
        for i in range(self.pretraining_tp):
            out = out + nn.functional.linear(context[:, :, int(i * slices) : int((i + 1) * slices)], self.dense.weight[:, int(i * slices) : int((i + 1) * slices)])
        return out + residual


class Bloom(nn.Module):
    def __init__(self, d=32, h=8):
        super().__init__()
        self.word_embeddings, self.word_embeddings_layernorm, self.h = nn.Embedding(60, d), nn.LayerNorm(d), h
        self.ln1, self.attn = nn.ModuleList([nn.LayerNorm(d) for _ in range(2)]), nn.ModuleList([BloomAttention(d, h) for _ in range(2)])
        self.mlp = nn.ModuleList([nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 64), nn.GELU(), nn.Linear(64, d)) for _ in range(2)])

    def forward(self, input_ids, attention_mask):
        x = self.word_embeddings_layernorm(self.word_embeddings(input_ids))
        alibi = build_alibi_tensor(attention_mask, self.h)
        n = input_ids.shape[1]
        keep = torch.ones(n, n, dtype=torch.bool).tril()[None, None] & attention_mask[:, None, None].bool()
        mask = torch.zeros(keep.shape).masked_fill(~keep, torch.finfo(torch.float32).min)
        for ln, a, f in zip(self.ln1, self.attn, self.mlp):
            x = a(ln(x), x, alibi, mask, input_ids)
            x = x + f(x)
        return x


def build():
    torch.manual_seed(16)
    return Bloom().eval()

SIZES = dict(batch=2, n=8)
def inputs(batch=2, n=8):
    mask = torch.ones(batch, n, dtype=torch.long); mask[0, :2] = 0
    return dict(input_ids=torch.randint(0, 60, (batch, n)), attention_mask=mask)
DYNAMIC = dict(input_ids={0: "batch", 1: "n"}, attention_mask={0: "batch", 1: "n"})
VALID = "attention_mask"
TRUTH = dict(gated=2, sparse=2, notes="BLOOM: ALiBi by baddbmm, heads x 3 packing, routing by token id (relu of an embedding), output projection in tensor-parallel slices; left padding rows all masked in the first rows")
