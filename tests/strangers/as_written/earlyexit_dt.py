import math, torch
from torch import nn


class Conv1D(nn.Module):
    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.weight, self.bias = nf, nn.Parameter(torch.randn(nx, nf) * 0.15), nn.Parameter(torch.zeros(nf))

    def forward(self, x):
        size_out = x.size()[:-1] + (self.nf,)
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(size_out)


class Attention(nn.Module):
    def __init__(self, nx, h, ctx):
        super().__init__()
        self.register_buffer("bias", torch.tril(torch.ones((ctx, ctx), dtype=torch.uint8)).view(1, 1, ctx, ctx))
        self.register_buffer("masked_bias", torch.tensor(-1e4))
        self.n_head, self.split_size, self.c_attn, self.c_proj = h, nx, Conv1D(3 * nx, nx), Conv1D(nx, nx)

    def _attn(self, q, k, v, attention_mask, head_mask):
        w = torch.matmul(q, k) / (float(v.size(-1)) ** 0.5)
        nd, ns = w.size(-2), w.size(-1)
        mask = self.bias[:, :, ns - nd : ns, :ns]
        w = torch.where(mask.bool(), w, self.masked_bias.to(w.dtype)) + attention_mask
        w = nn.Softmax(dim=-1)(w)
        w = w * head_mask
        return torch.matmul(w, v)

    def split_heads(self, x, k=False):
        x = x.view(*(x.size()[:-1] + (self.n_head, x.size(-1) // self.n_head)))
        return x.permute(0, 2, 3, 1) if k else x.permute(0, 2, 1, 3)

    def forward(self, x, attention_mask, head_mask):
        query, key, value = self.c_attn(x).split(self.split_size, dim=2)
        a = self._attn(self.split_heads(query), self.split_heads(key, k=True), self.split_heads(value), attention_mask, head_mask)
        a = a.permute(0, 2, 1, 3).contiguous()
        return self.c_proj(a.view(*(a.size()[:-2] + (a.size(-2) * a.size(-1),))))


class DecisionTransformer(nn.Module):
    """Early exit by heads: a token that is sure closes all heads of the later layers, and head_mask (an argument) closes more."""
    def __init__(self, d=32, h=4, layers=3):
        super().__init__()
        self.embed_timestep, self.embed_return, self.embed_state, self.embed_action = nn.Embedding(30, d), nn.Linear(1, d), nn.Linear(5, d), nn.Linear(2, d)
        self.embed_ln, self.predict_action = nn.LayerNorm(d), nn.Sequential(nn.Linear(d, 2), nn.Tanh())
        self.ln_1, self.ln_2 = nn.ModuleList([nn.LayerNorm(d) for _ in range(layers)]), nn.ModuleList([nn.LayerNorm(d) for _ in range(layers)])
        self.attn, self.mlp = nn.ModuleList([Attention(d, h, 64) for _ in range(layers)]), nn.ModuleList([nn.Sequential(Conv1D(64, d), nn.GELU(), Conv1D(d, 64)) for _ in range(layers)])
        self.exit = nn.ModuleList([nn.Linear(d, 1) for _ in range(layers)])

    def forward(self, states, actions, returns_to_go, timesteps, head_mask):
        B, T = states.shape[0], states.shape[1]
        t = self.embed_timestep(timesteps)
        s, a, r = self.embed_state(states) + t, self.embed_action(actions) + t, self.embed_return(returns_to_go) + t
        x = torch.stack((r, s, a), dim=1).permute(0, 2, 1, 3).reshape(B, 3 * T, -1)
        x = self.embed_ln(x)
        am = torch.zeros(B, 1, 1, 3 * T)
        alive = torch.ones(B, 3 * T, 1)
        for i in range(len(self.attn)):
            hm = head_mask[i][None, :, None, None] * alive.transpose(1, 2).unsqueeze(-1)    # [b, h, tokens, 1]
            x = x + self.attn[i](self.ln_1[i](x), am, hm)
            x = x + alive * self.mlp[i](self.ln_2[i](x))
            alive = alive * (torch.sigmoid(self.exit[i](x)) < 0.55).to(x.dtype)
        x = x.reshape(B, T, 3, -1).permute(0, 2, 1, 3)
        return self.predict_action(x[:, 1]), alive


def build():
    torch.manual_seed(34)
    m = DecisionTransformer().eval()
    return m

SIZES = dict(batch=2, n=5)
def inputs(batch=2, n=5):
    return dict(states=torch.randn(batch, n, 5), actions=torch.randn(batch, n, 2), returns_to_go=torch.randn(batch, n, 1), timesteps=torch.randint(0, 30, (batch, n)), head_mask=(torch.rand(3, 4) < 0.7).float())
DYNAMIC = dict(states={0: "batch", 1: "n"}, actions={0: "batch", 1: "n"}, returns_to_go={0: "batch", 1: "n"}, timesteps={0: "batch", 1: "n"})
TRUTH = dict(gated=3, sparse=3, notes="Decision Transformer (GPT-2 code): head_mask argument times early-exit flag on attention weights; the second and third layer also depend on the token; HF's head_mask argument alone gates the first")
