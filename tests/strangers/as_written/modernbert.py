import torch
from torch import nn
import torch.nn.functional as F


class ModernBertAttention(nn.Module):
    def __init__(self, d, heads, layer_id, window, active):
        super().__init__()
        self.num_heads, self.head_dim, self.all_head_size, self.active = heads, d // heads, d, active
        self.Wqkv, self.Wo = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.Wg = nn.Linear(d, heads, bias=False)
        self.local_attention = window if layer_id % 3 != 0 else -1
        base = 160000.0 if self.local_attention == -1 else 10000.0
        self.register_buffer("inv_freq", 1.0 / (base ** (torch.arange(0, self.head_dim, 2).float() / self.head_dim)), persistent=False)

    def forward(self, hidden_states, attention_mask, sliding_window_mask, position_ids):
        bs = hidden_states.shape[0]
        qkv = self.Wqkv(hidden_states).view(bs, -1, 3, self.num_heads, self.head_dim)
        fr = position_ids[:, :, None].float() * self.inv_freq[None, None, :]
        cos, sin = torch.cat([fr, fr], -1).cos().unsqueeze(1), torch.cat([fr, fr], -1).sin().unsqueeze(1)
        query, key, value = qkv.transpose(3, 1).unbind(dim=2)
        rot = lambda x: torch.cat((-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]), dim=-1)
        query, key = query * cos + rot(query) * sin, key * cos + rot(key) * sin
        if self.local_attention != -1:
            attention_mask = sliding_window_mask
        attn_output = F.scaled_dot_product_attention(query, key, value, dropout_p=0.0, attn_mask=attention_mask).transpose(1, 2).contiguous()
        logits = self.Wg(hidden_states)
        # straight-through: the hard mask forward, the soft one backward
        soft = logits.softmax(-1)
        hard = torch.zeros_like(soft).scatter_(-1, soft.topk(self.active, dim=-1).indices, 1.0)
        gate = hard + soft - soft.detach() if self.training else hard * soft
        attn_output = attn_output * gate[..., None]
        return self.Wo(attn_output.view(bs, -1, self.all_head_size))


class Layer(nn.Module):
    def __init__(self, d, i):
        super().__init__()
        self.attn_norm = nn.Identity() if i == 0 else nn.LayerNorm(d, bias=False)
        self.attn, self.mlp_norm = ModernBertAttention(d, 4, i, 3, 2), nn.LayerNorm(d, bias=False)
        self.Wi, self.Wo = nn.Linear(d, 96, bias=False), nn.Linear(48, d, bias=False)

    def forward(self, x, m, s, p):
        x = x + self.attn(self.attn_norm(x), m, s, p)
        inp, gate = self.Wi(self.mlp_norm(x)).chunk(2, dim=-1)
        return x + self.Wo(F.gelu(inp) * gate)


class ModernBert(nn.Module):
    def __init__(self, d=32):
        super().__init__()
        self.tok, self.norm = nn.Embedding(60, d), nn.LayerNorm(d, bias=False)
        self.layers, self.final_norm, self.half = nn.ModuleList([Layer(d, i) for i in range(3)]), nn.LayerNorm(d, bias=False), 2
        self.classifier = nn.Linear(d, 5)

    def forward(self, input_ids, attention_mask):
        b, n = input_ids.shape
        position_ids = torch.arange(n).unsqueeze(0)
        global_mask = ((1.0 - attention_mask[:, None, None, :].float()) * torch.finfo(torch.float32).min).expand(b, 1, n, n)
        rows = torch.arange(n).unsqueeze(0)
        distance = torch.abs(rows - rows.T)
        window_mask = (distance <= self.half).unsqueeze(0).unsqueeze(0)
        sliding = global_mask.masked_fill(window_mask.logical_not(), torch.finfo(torch.float32).min)
        x = self.norm(self.tok(input_ids))
        for l in self.layers: x = l(x, global_mask, sliding, position_ids)
        x = self.final_norm(x)
        pooled = (x * attention_mask.unsqueeze(-1)).sum(dim=1) / attention_mask.sum(dim=1, keepdim=True)
        return self.classifier(pooled), x


def build():
    torch.manual_seed(12)
    m = ModernBert().eval()
    with torch.no_grad():
        for l in m.layers: l.attn.Wg.weight.mul_(6)
    return m

SIZES = dict(batch=2, n=12)
def inputs(batch=2, n=12):
    mask = torch.ones(batch, n, dtype=torch.long); mask[1, -2:] = 0
    return dict(input_ids=torch.randint(0, 60, (batch, n)), attention_mask=mask)
DYNAMIC = dict(input_ids={0: "batch", 1: "n"}, attention_mask={0: "batch", 1: "n"})
VALID = "attention_mask"
TRUTH = dict(gated=3, sparse=3, notes="ModernBERT: local/global layers, packed Wqkv transposed then unbound, straight-through gate (hard*soft in eval)")
