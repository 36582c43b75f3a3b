"""diffusers: JointAttnProcessor2_0 (SD3): two streams, own routers, qk rms norm, last block context_pre_only."""
import torch, torch.nn.functional as F
from torch import nn


class JointAttention(nn.Module):
    def __init__(self, dim=32, heads=4, k=2, context_pre_only=False):
        super().__init__()
        self.heads, self.k, self.context_pre_only = heads, k, context_pre_only
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim) for _ in range(3))
        self.add_q_proj, self.add_k_proj, self.add_v_proj = (nn.Linear(dim, dim) for _ in range(3))
        d = dim // heads
        self.norm_q, self.norm_k, self.norm_added_q, self.norm_added_k = (nn.RMSNorm(d, eps=1e-6) for _ in range(4))
        self.to_out = nn.ModuleList([nn.Linear(dim, dim), nn.Dropout(0.0)])
        if not context_pre_only:
            self.to_add_out = nn.Linear(dim, dim)
        self.to_gate = nn.Linear(dim, heads, bias=False)
        self.add_gate = nn.Linear(dim, heads, bias=False)

    def route(self, logits):
        w, idx = torch.topk(logits.softmax(dim=-1), self.k, dim=-1)
        w = w / w.sum(dim=-1, keepdim=True)
        return torch.zeros_like(logits).scatter_(-1, idx, w)

    def forward(self, hidden_states, encoder_hidden_states):
        b = hidden_states.shape[0]
        residual = hidden_states
        shape = lambda t: t.view(b, -1, self.heads, t.shape[-1] // self.heads).transpose(1, 2)
        q, k, v = (shape(f(hidden_states)) for f in (self.to_q, self.to_k, self.to_v))
        q, k = self.norm_q(q), self.norm_k(k)
        eq, ek, ev = (shape(f(encoder_hidden_states)) for f in (self.add_q_proj, self.add_k_proj, self.add_v_proj))
        eq, ek = self.norm_added_q(eq), self.norm_added_k(ek)
        query, key, value = torch.cat([q, eq], 2), torch.cat([k, ek], 2), torch.cat([v, ev], 2)
        out = F.scaled_dot_product_attention(query, key, value, dropout_p=0.0, is_causal=False)
        gates = torch.cat([self.route(self.to_gate(hidden_states)), self.route(self.add_gate(encoder_hidden_states))], dim=1)
        out = out.transpose(1, 2)
        out = (out * gates[..., None]).reshape(b, -1, self.heads * out.shape[-1])
        out, eout = out[:, : residual.shape[1]], out[:, residual.shape[1] :]
        out = self.to_out[1](self.to_out[0](out))
        if not self.context_pre_only:
            eout = self.to_add_out(eout)
        return out, eout


class JointTransformerBlock(nn.Module):
    def __init__(self, dim=32, pre_only=False):
        super().__init__()
        self.pre_only = pre_only
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.norm1_context = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.mod = nn.Linear(dim, 3 * dim)
        self.mod_context = nn.Linear(dim, 3 * dim)
        self.attn = JointAttention(dim, context_pre_only=pre_only)

    def forward(self, x, c, temb):
        shift, scale, gate = self.mod(F.silu(temb)).chunk(3, dim=1)
        cshift, cscale, cgate = self.mod_context(F.silu(temb)).chunk(3, dim=1)
        nx = self.norm1(x) * (1 + scale[:, None]) + shift[:, None]
        nc = self.norm1_context(c) * (1 + cscale[:, None]) + cshift[:, None]
        a, ca = self.attn(nx, nc)
        x = x + gate.unsqueeze(1) * a
        c = None if self.pre_only else c + cgate.unsqueeze(1) * ca
        return c, x


class SD3(nn.Module):
    def __init__(self):
        super().__init__()
        self.transformer_blocks = nn.ModuleList([JointTransformerBlock(pre_only=i == 1) for i in range(2)])

    def forward(self, hidden_states, encoder_hidden_states, temb):
        for block in self.transformer_blocks:
            encoder_hidden_states, hidden_states = block(hidden_states, encoder_hidden_states, temb)
        return {"sample": hidden_states}


def build():
    torch.manual_seed(2)
    m = SD3()
    for b in m.transformer_blocks:
        nn.init.normal_(b.attn.to_gate.weight, std=0.5)
        nn.init.normal_(b.attn.add_gate.weight, std=0.5)
    return m.eval()


SIZES = dict(batch=2, n=9, text=5)


def inputs(batch=2, n=9, text=5):
    return dict(hidden_states=torch.randn(batch, n, 32), encoder_hidden_states=torch.randn(batch, text, 32), temb=torch.randn(batch, 32))


DYNAMIC = dict(hidden_states={0: "batch", 1: "n"}, encoder_hidden_states={0: "batch", 1: "text"}, temb={0: "batch"})
TRUTH = dict(gated=2, sparse=2, notes="joint two-stream, one route per stream, concatenated gates on joint output")
