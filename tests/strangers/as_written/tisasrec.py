import torch
from torch import nn


class TimeAwareMultiHeadAttention(nn.Module):
    def __init__(self, hidden_size, head_num, experts):
        super().__init__()
        self.Q_w, self.K_w, self.V_w = nn.Linear(hidden_size, hidden_size), nn.Linear(hidden_size, hidden_size), nn.Linear(hidden_size, hidden_size)
        self.hidden_size, self.head_num, self.head_size = hidden_size, head_num, hidden_size // head_num
        self.gate_w = nn.Linear(hidden_size, head_num, bias=False)
        self.k = experts

    def forward(self, queries, keys, time_mask, attn_mask, time_matrix_K, time_matrix_V, abs_pos_K, abs_pos_V):
        Q, K, V = self.Q_w(queries), self.K_w(keys), self.V_w(keys)
        Q_ = torch.cat(torch.split(Q, self.head_size, dim=2), dim=0)
        K_ = torch.cat(torch.split(K, self.head_size, dim=2), dim=0)
        V_ = torch.cat(torch.split(V, self.head_size, dim=2), dim=0)
        time_matrix_K_ = torch.cat(torch.split(time_matrix_K, self.head_size, dim=3), dim=0)
        time_matrix_V_ = torch.cat(torch.split(time_matrix_V, self.head_size, dim=3), dim=0)
        abs_pos_K_ = torch.cat(torch.split(abs_pos_K, self.head_size, dim=2), dim=0)
        abs_pos_V_ = torch.cat(torch.split(abs_pos_V, self.head_size, dim=2), dim=0)
        attn_weights = Q_.matmul(torch.transpose(K_, 1, 2))
        attn_weights = attn_weights + Q_.matmul(torch.transpose(abs_pos_K_, 1, 2))
        attn_weights = attn_weights + time_matrix_K_.matmul(Q_.unsqueeze(-1)).squeeze(-1)
        attn_weights = attn_weights / (K_.shape[-1] ** 0.5)
        time_mask = time_mask.unsqueeze(-1).repeat(self.head_num, 1, 1).expand(-1, -1, attn_weights.shape[-1])
        attn_mask = attn_mask.unsqueeze(0).expand(attn_weights.shape[0], -1, -1)
        paddings = torch.ones(attn_weights.shape) * (-(2**32) + 1)
        attn_weights = torch.where(time_mask, paddings, attn_weights)
        attn_weights = torch.where(attn_mask, paddings, attn_weights)
        attn_weights = torch.softmax(attn_weights, dim=-1)
        outputs = attn_weights.matmul(V_)
        outputs = outputs + attn_weights.matmul(abs_pos_V_)
        outputs = outputs + attn_weights.unsqueeze(2).matmul(time_matrix_V_).reshape(outputs.shape).squeeze(2)
        g = torch.sigmoid(self.gate_w(queries))
        v, i = torch.topk(g, self.k, dim=-1, sorted=False)
        g = torch.zeros_like(g).scatter_(-1, i, v / (v.sum(-1, keepdim=True) + 1e-8))
        g = torch.cat(torch.split(g, 1, dim=2), dim=0)
        outputs = outputs * g
        return torch.cat(torch.split(outputs, Q.shape[0], dim=0), dim=2)  # div batch_size


class TiSASRec(nn.Module):
    def __init__(self, d=32, items=50, span=8, maxlen=32):
        super().__init__()
        self.item_emb = nn.Embedding(items + 1, d, padding_idx=0)
        self.abs_pos_K_emb, self.abs_pos_V_emb = nn.Embedding(maxlen, d), nn.Embedding(maxlen, d)
        self.time_matrix_K_emb, self.time_matrix_V_emb = nn.Embedding(span + 1, d), nn.Embedding(span + 1, d)
        self.ln1, self.ln2, self.attn = nn.ModuleList([nn.LayerNorm(d) for _ in range(2)]), nn.ModuleList([nn.LayerNorm(d) for _ in range(2)]), nn.ModuleList([TimeAwareMultiHeadAttention(d, 4, 2) for _ in range(2)])
        self.conv1, self.conv2 = nn.ModuleList([nn.Conv1d(d, d, 1) for _ in range(2)]), nn.ModuleList([nn.Conv1d(d, d, 1) for _ in range(2)])
        self.last, self.d = nn.LayerNorm(d), d

    def forward(self, log_seqs, time_matrices):
        seqs = self.item_emb(log_seqs) * (self.d**0.5)
        pos = torch.arange(log_seqs.shape[1]).unsqueeze(0).repeat(log_seqs.shape[0], 1)
        pk, pv = self.abs_pos_K_emb(pos), self.abs_pos_V_emb(pos)
        tk, tv = self.time_matrix_K_emb(time_matrices), self.time_matrix_V_emb(time_matrices)
        timeline_mask = log_seqs == 0
        seqs = seqs * ~timeline_mask.unsqueeze(-1)
        tl = seqs.shape[1]
        attention_mask = ~torch.tril(torch.ones((tl, tl), dtype=torch.bool))
        for i in range(2):
            Q = self.ln1[i](seqs)
            seqs = Q + self.attn[i](Q, seqs, timeline_mask, attention_mask, tk, tv, pk, pv)
            seqs = self.ln2[i](seqs)
            seqs = seqs + self.conv2[i](torch.relu(self.conv1[i](seqs.transpose(-1, -2)))).transpose(-1, -2)
            seqs = seqs * ~timeline_mask.unsqueeze(-1)
        return self.last(seqs)


def build():
    torch.manual_seed(20)
    m = TiSASRec().eval()
    with torch.no_grad():
        for a in m.attn: a.gate_w.weight.mul_(6)
        for n, p in m.named_parameters():
            if "_emb" in n: p.mul_(0.3)
    return m

SIZES = dict(batch=3, n=8)
def inputs(batch=3, n=8):
    s = torch.randint(1, 51, (batch, n)); s[0, :2] = 0
    return dict(log_seqs=s, time_matrices=torch.randint(0, 9, (batch, n, n)))
DYNAMIC = dict(log_seqs={0: "batch", 1: "n"}, time_matrices={0: "batch", 1: "n", 2: "n"})
TRUTH = dict(gated=2, sparse=2, notes="TiSASRec: heads split and put into the batch by cat(split), gates likewise; three value terms (V, positions, time intervals per pair), no output projection. The per-pair value term is no plain attention: named is acceptable")
