import torch
from torch import nn


class MarianAttention(nn.Module):
    def __init__(self, embed_dim, num_heads, active):
        super().__init__()
        self.embed_dim, self.num_heads, self.head_dim, self.active = embed_dim, num_heads, embed_dim // num_heads, active
        self.scaling = self.head_dim**-0.5
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (nn.Linear(embed_dim, embed_dim) for _ in range(4))

    def _shape(self, tensor, seq_len, bsz):
        return tensor.view(bsz, seq_len, self.num_heads, self.head_dim).transpose(1, 2).contiguous()

    def forward(self, hidden_states, key_value_states=None, attention_mask=None, layer_head_mask=None):
        is_cross_attention = key_value_states is not None
        bsz, tgt_len, _ = hidden_states.size()
        query_states = self.q_proj(hidden_states) * self.scaling
        kv = key_value_states if is_cross_attention else hidden_states
        key_states, value_states = self._shape(self.k_proj(kv), -1, bsz), self._shape(self.v_proj(kv), -1, bsz)
        proj_shape = (bsz * self.num_heads, -1, self.head_dim)
        query_states = self._shape(query_states, tgt_len, bsz).view(*proj_shape)
        key_states, value_states = key_states.reshape(*proj_shape), value_states.reshape(*proj_shape)
        src_len = key_states.size(1)
        attn_weights = torch.bmm(query_states, key_states.transpose(1, 2))
        if attention_mask is not None:
            attn_weights = attn_weights.view(bsz, self.num_heads, tgt_len, src_len) + attention_mask
            attn_weights = attn_weights.view(bsz * self.num_heads, tgt_len, src_len)
        attn_weights = nn.functional.softmax(attn_weights, dim=-1)
        if layer_head_mask is not None:
            attn_weights = layer_head_mask.transpose(1, 2).unsqueeze(-1) * attn_weights.view(bsz, self.num_heads, tgt_len, src_len)
            attn_weights = attn_weights.reshape(bsz * self.num_heads, tgt_len, src_len)
        attn_probs = nn.functional.dropout(attn_weights, p=0.1, training=self.training)
        attn_output = torch.bmm(attn_probs, value_states)
        attn_output = attn_output.view(bsz, self.num_heads, tgt_len, self.head_dim).transpose(1, 2)
        return self.out_proj(attn_output.reshape(bsz, tgt_len, self.embed_dim))


class HeadMasker(nn.Module):
    """Learned head mask: one router per layer gives self- and cross-attention their masks."""
    def __init__(self, d, heads, groups):
        super().__init__()
        self.fc, self.heads, self.groups = nn.Linear(d, heads * groups), heads, groups

    def forward(self, x):
        z = self.fc(x).unflatten(-1, (self.groups, self.heads))
        z = z / 0.7  # temperature
        v, i = z.topk(2, dim=-1)
        return torch.full_like(z, float("-inf")).scatter(-1, i, v).softmax(-1).unbind(-2)


class EncoderLayer(nn.Module):
    def __init__(self, d, h):
        super().__init__()
        self.self_attn, self.ln, self.masker = MarianAttention(d, h, 2), nn.LayerNorm(d), HeadMasker(d, h, 1)
        self.fc1, self.fc2, self.ln2 = nn.Linear(d, 64), nn.Linear(64, d), nn.LayerNorm(d)

    def forward(self, x, mask):
        (hm,) = self.masker(x)
        x = self.ln(x + self.self_attn(x, attention_mask=mask, layer_head_mask=hm))
        return self.ln2(x + self.fc2(nn.functional.silu(self.fc1(x))))


class DecoderLayer(EncoderLayer):
    def __init__(self, d, h):
        super().__init__(d, h)
        self.encoder_attn, self.ln3, self.masker = MarianAttention(d, h, 2), nn.LayerNorm(d), HeadMasker(d, h, 2)

    def forward(self, x, mask, enc, enc_mask):
        sm, cm = self.masker(x)
        x = self.ln(x + self.self_attn(x, attention_mask=mask, layer_head_mask=sm))
        x = self.ln3(x + self.encoder_attn(x, enc, enc_mask, cm))
        return self.ln2(x + self.fc2(nn.functional.silu(self.fc1(x))))


class Marian(nn.Module):
    def __init__(self, d=40, h=4):
        super().__init__()
        self.emb, self.pos = nn.Embedding(50, d), nn.Embedding(40, d)
        self.enc, self.dec = nn.ModuleList([EncoderLayer(d, h)]), nn.ModuleList([DecoderLayer(d, h)])
        self.register_buffer("final_logits_bias", torch.zeros(1, 50))

    def forward(self, input_ids, attention_mask, decoder_input_ids):
        x = self.emb(input_ids) + self.pos(torch.arange(input_ids.size(1)))
        inverted = 1.0 - attention_mask[:, None, None].expand(-1, 1, input_ids.size(1), -1).to(x.dtype)
        em = inverted.masked_fill(inverted.to(torch.bool), torch.finfo(x.dtype).min)
        for l in self.enc: x = l(x, em)
        t = decoder_input_ids.size(1)
        y = self.emb(decoder_input_ids) + self.pos(torch.arange(t))
        cm = torch.full((t, t), torch.finfo(x.dtype).min)
        cond = torch.arange(t)
        cm.masked_fill_(cond < (cond + 1).view(t, 1), 0)
        dm = 1.0 - attention_mask[:, None, None].expand(-1, 1, t, -1).to(x.dtype)
        dm = dm.masked_fill(dm.to(torch.bool), torch.finfo(x.dtype).min)
        for l in self.dec: y = l(y, cm[None, None], x, dm)
        return y @ self.emb.weight.T + self.final_logits_bias, x


def build():
    torch.manual_seed(11)
    m = Marian().eval()
    with torch.no_grad():
        for n, p in m.named_parameters():
            if "masker" in n: p.mul_(6)
    return m

SIZES = dict(batch=2, src=7, tgt=5)
def inputs(batch=2, src=7, tgt=5):
    mask = torch.ones(batch, src, dtype=torch.long); mask[0, -2:] = 0
    return dict(input_ids=torch.randint(0, 50, (batch, src)), attention_mask=mask, decoder_input_ids=torch.randint(0, 50, (batch, tgt)))
DYNAMIC = dict(input_ids={0: "batch", 1: "src"}, attention_mask={0: "batch", 1: "src"}, decoder_input_ids={0: "batch", 1: "tgt"})
TRUTH = dict(gated=3, sparse=3, notes="Marian/BART: layer_head_mask per token on attention weights, bmm with heads in the batch, one masker for self and cross; second output is the padded encoder")
