import torch
from torch import nn


class InterpretableMultiHeadAttention(nn.Module):
    """TFT: values are shared by all heads, and heads are averaged."""
    def __init__(self, d, n_head):
        super().__init__()
        self.n_head, self.d_head = n_head, d // n_head
        self.v_linear = nn.Linear(d, self.d_head)
        self.q_linears, self.k_linears = nn.ModuleList([nn.Linear(d, self.d_head) for _ in range(n_head)]), nn.ModuleList([nn.Linear(d, self.d_head) for _ in range(n_head)])
        self.w_o = nn.Linear(self.d_head, d, bias=False)
        self.head_gate = nn.Linear(d, n_head)

    def attention(self, q, k, v, mask):
        attn = torch.bmm(q, k.permute(0, 2, 1)) / (self.d_head**0.5)
        attn = attn.masked_fill(mask, -1e9)
        attn = torch.softmax(attn, dim=2)
        return torch.bmm(attn, v), attn

    def forward(self, q, k, v, mask):
        heads, attns = [], []
        vs = self.v_linear(v)
        logits = self.head_gate(q)
        w = torch.softmax(logits, dim=-1)
        w = torch.where(w >= torch.kthvalue(w, self.n_head - 1, dim=-1, keepdim=True).values, w, torch.zeros_like(w))
        for i in range(self.n_head):
            head, attn = self.attention(self.q_linears[i](q), self.k_linears[i](k), vs, mask)
            heads.append(head * w[..., i : i + 1])
            attns.append(attn)
        head = torch.stack(heads, dim=2)
        outputs = torch.mean(head, dim=2)
        return self.w_o(outputs), torch.stack(attns, dim=2)


class GRN(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.fc1, self.fc2, self.glu, self.norm = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, 2 * d), nn.LayerNorm(d)

    def forward(self, x):
        h = self.fc2(nn.functional.elu(self.fc1(x)))
        return self.norm(nn.functional.glu(self.glu(h), dim=-1) + x)


class TFT(nn.Module):
    def __init__(self, d=32, enc=10):
        super().__init__()
        self.emb, self.lstm, self.grn = nn.Linear(5, d), nn.LSTM(d, d, batch_first=True), GRN(d)
        self.multihead_attn, self.post, self.out, self.enc = InterpretableMultiHeadAttention(d, 4), GRN(d), nn.Linear(d, 3), enc

    def forward(self, x):
        h, _ = self.lstm(self.emb(x))
        h = self.grn(h)
        t = h.shape[1]
        mask = (torch.arange(t)[None, :] > torch.arange(self.enc, t)[:, None]).unsqueeze(0)
        a, w = self.multihead_attn(h[:, self.enc :], h, h, mask.expand(h.shape[0], -1, -1))
        return dict(prediction=self.out(self.post(a + h[:, self.enc :])), attention=w)


def build():
    torch.manual_seed(19)
    m = TFT().eval()
    with torch.no_grad(): m.multihead_attn.head_gate.weight.mul_(10)
    return m

SIZES = dict(batch=2, n=16)
def inputs(batch=2, n=16): return dict(x=torch.randn(batch, n, 5))
DYNAMIC = dict(x={0: "batch", 1: "n"})
TRUTH = dict(gated=1, sparse=0, notes="TFT interpretable attention: shared values, heads averaged, loop over heads, kthvalue gates; attention weights of all heads are returned, so scores cannot be skipped (found or named expected)")
