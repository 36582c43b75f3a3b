"""PyTorch Geometric's to_dense_batch: nodes of all graphs are one list, written into [graphs, most nodes] by index, attended to with a bias for each edge, and read back by index; Graphormer-like degree and edge embeddings; gates from node and its graph's mean."""
import torch
from torch import nn

MOST = 8


def to_dense_batch(x, batch, slot, graphs, most=MOST):
    idx = batch * most + slot
    out = x.new_zeros((graphs * most, x.size(-1)))
    out[idx] = x
    mask = torch.zeros(graphs * most, dtype=torch.bool)
    mask[idx] = True
    return out.view(graphs, most, -1), mask.view(graphs, most)


class EdgeBiasAttention(nn.Module):
    def __init__(self, d, h, edge_types):
        super().__init__()
        self.h, self.qkv, self.out, self.edge_bias = h, nn.Linear(d, 3 * d), nn.Linear(d, d), nn.Embedding(edge_types, h, padding_idx=0)
        self.gate = nn.Sequential(nn.Linear(2 * d, d), nn.SiLU(), nn.Linear(d, h))

    def forward(self, x, batch, slot, adj):
        graphs = adj.shape[0]
        dense, mask = to_dense_batch(x, batch, slot, graphs)
        q, k, v = self.qkv(dense).view(graphs, MOST, 3, self.h, -1).unbind(2)
        scores = torch.einsum("gihc,gjhc->ghij", q, k) / q.shape[-1] ** 0.5
        scores = scores + self.edge_bias(adj).permute(0, 3, 1, 2)
        scores = scores.masked_fill(~mask[:, None, None, :], torch.finfo(scores.dtype).min)
        out = torch.einsum("ghij,gjhc->gihc", scores.softmax(-1), v)
        nodes = out.reshape(graphs * MOST, self.h, -1)[batch * MOST + slot]   # back to the list of nodes
        count = mask.sum(1, keepdim=True)
        mean = dense.sum(1) / count
        logits = self.gate(torch.cat([x, mean[batch]], -1))
        keep = logits >= logits.topk(2, dim=-1).values[..., -1:]
        return self.out((nodes * (logits.softmax(-1) * keep).unsqueeze(-1)).flatten(1))


class Net(nn.Module):
    def __init__(self, d=32, h=4):
        super().__init__()
        self.atom, self.degree = nn.Embedding(20, d), nn.Embedding(MOST + 1, d)
        self.layers, self.norms = nn.ModuleList([EdgeBiasAttention(d, h, 5) for _ in range(2)]), nn.ModuleList([nn.LayerNorm(d) for _ in range(2)])
        self.head = nn.Linear(d, 3)

    def forward(self, atoms, batch, slot, adj):
        degree = (adj > 0).sum(-1).view(-1)[batch * MOST + slot]
        x = self.atom(atoms) + self.degree(degree)
        for layer, norm in zip(self.layers, self.norms): x = x + layer(norm(x), batch, slot, adj)
        pooled = x.new_zeros(adj.shape[0], x.size(-1)).index_add(0, batch, x)
        return self.head(pooled), x


def build():
    torch.manual_seed(103)
    return Net().eval()

SIZES = dict(graphs=3, nodes=13)
def inputs(graphs=3, nodes=13):
    batch = torch.arange(nodes) * graphs // nodes
    slot = torch.arange(nodes) - torch.searchsorted(batch, batch)
    adj = torch.randint(0, 5, (graphs, MOST, MOST))
    return dict(atoms=torch.randint(0, 20, (nodes,)), batch=batch, slot=slot, adj=adj)
DYNAMIC = dict(atoms={0: "nodes"}, batch={0: "nodes"}, slot={0: "nodes"}, adj={0: "graphs"})
TRUTH = dict(gated=2, sparse=2, notes="to_dense_batch: the attention's output is gathered back to the list of nodes before it is gated, so gates are [nodes, heads] and heads [graphs, most, heads]; a user expects found, or named")
