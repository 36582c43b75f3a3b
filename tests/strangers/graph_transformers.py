"""Graphs and molecules: edge biases, head-last layouts, distances, pairs, sparse edges."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moh_deploy.frontend.load.model import ModelInput
from tests.zoo.model import Expected, ExpectedLayer, ZooModel, noise, seeded


class BiasedMHA(nn.Module):
    """Biases and masks are added to scores [B, N, N, H]: heads are last."""

    def __init__(self, feat_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, feat_size // num_heads
        self.scaling = self.head_dim**-0.5
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(feat_size, feat_size) for _ in range(4)
        )
        self.head_router = nn.Linear(feat_size, num_heads, bias=False)

    def forward(self, ndata: Tensor, attn_bias: Tensor, attn_mask: Tensor) -> Tensor:
        q_h = self.q_proj(ndata).transpose(0, 1)
        k_h = self.k_proj(ndata).transpose(0, 1)
        v_h = self.v_proj(ndata).transpose(0, 1)
        bsz, n, _ = ndata.shape
        q_h = q_h.reshape(n, bsz * self.num_heads, self.head_dim).transpose(0, 1) * self.scaling
        k_h = k_h.reshape(n, bsz * self.num_heads, self.head_dim).permute(1, 2, 0)
        v_h = v_h.reshape(n, bsz * self.num_heads, self.head_dim).transpose(0, 1)
        attn = torch.bmm(q_h, k_h).transpose(0, 2).reshape(n, n, bsz, self.num_heads)
        attn = attn.transpose(0, 2) + attn_bias
        attn[attn_mask.to(torch.bool)] = float("-inf")
        attn = attn.transpose(0, 2).reshape(n, n, bsz * self.num_heads).transpose(0, 2)
        attn = F.softmax(attn, dim=2)
        out = torch.bmm(attn, v_h).transpose(0, 1)
        gate = self.head_router(ndata).softmax(-1)
        gate = gate * (gate >= gate.topk(3, dim=-1).values.amin(-1, keepdim=True))
        out = out.reshape(n, bsz, self.num_heads, self.head_dim) * gate.transpose(0, 1)[..., None]
        return self.out_proj(out.reshape(n, bsz, -1).transpose(0, 1))


class Graphormer(nn.Module):
    def __init__(self, d: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.atom_encoder, self.degree = nn.Embedding(20, d), nn.Embedding(8, d)
        self.spatial = nn.Embedding(6, heads)
        self.virtual = nn.Parameter(torch.zeros(heads))
        self.attn = nn.ModuleList(BiasedMHA(d, heads) for _ in range(2))
        self.norm = nn.ModuleList(nn.LayerNorm(d) for _ in range(2))

    def forward(self, atoms: Tensor, dist: Tensor, num_nodes: Tensor) -> Tensor:
        x = self.atom_encoder(atoms) + self.degree((dist == 1).sum(-1).clamp(max=7))
        bias = self.spatial(dist) + self.virtual
        pad = torch.arange(atoms.size(1))[None] >= num_nodes[:, None]
        mask = pad[:, None, :].expand(-1, atoms.size(1), -1)
        for attn, norm in zip(self.attn, self.norm, strict=True):
            x = norm(x + attn(x, bias, mask))
        return x.masked_fill(pad.unsqueeze(-1), 0.0).sum(1)


class SparseGAT(nn.Module):
    """Edges as index pairs; softmax over the incoming edges by scatter: no dense keys."""

    def __init__(self, d: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.lin, self.gate = heads, nn.Linear(d, d, bias=False), nn.Linear(d, heads)
        self.att_src = nn.Parameter(torch.randn(1, heads, d // heads))
        self.att_dst = nn.Parameter(torch.randn(1, heads, d // heads))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        n, d = x.shape
        h = self.lin(x).view(n, self.heads, d // self.heads)
        src, dst = edge_index[0], edge_index[1]
        alpha_src, alpha_dst = (h * self.att_src).sum(-1), (h * self.att_dst).sum(-1)
        alpha = F.leaky_relu(alpha_src[src] + alpha_dst[dst], 0.2).exp()
        total = alpha.new_zeros(n, self.heads).index_add(0, dst, alpha)
        alpha = alpha / (total[dst] + 1e-16)
        out = torch.zeros_like(h).index_add(0, dst, alpha.unsqueeze(-1) * h[src])
        probs = self.gate(x).softmax(-1)
        mask = torch.zeros_like(probs).scatter(1, probs.topk(2, 1).indices, 1.0)
        return F.elu((out * (probs * mask).unsqueeze(-1)).flatten(1))


class DistanceAttention(nn.Module):
    """Radial weights of pairwise distances beside products; coordinates move along differences."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads, self.dim = heads, d // heads
        self.to_qkv, self.to_out = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d)
        self.rbf = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, heads))
        self.to_gates = nn.Linear(d, heads)
        self.to_coors = nn.Linear(heads, 1, bias=False)

    def forward(self, feats: Tensor, coors: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        b, n, d = feats.shape
        q, k, v = self.to_qkv(feats).view(b, n, 3, self.heads, self.dim).unbind(2)
        dist = torch.cdist(coors, coors)
        radial = torch.exp(-((dist.unsqueeze(-1) - torch.linspace(0, 3, 8)) ** 2))
        sim = torch.einsum("bihd,bjhd->bhij", q, k) * self.dim**-0.5
        sim = sim + self.rbf(radial).permute(0, 3, 1, 2)
        pair_mask = mask[:, None, :, None] & mask[:, None, None, :]
        sim = sim.masked_fill(~pair_mask, -torch.finfo(sim.dtype).max)
        attn = sim.softmax(dim=-1)
        out = torch.einsum("bhij,bjhd->bihd", attn, v)
        chance = self.to_gates(feats).sigmoid()
        out = out * torch.where(chance > 0.5, chance, 0.0).unsqueeze(-1)
        delta = coors.unsqueeze(2) - coors.unsqueeze(1)
        weight = self.to_coors(attn.permute(0, 2, 3, 1))
        return self.to_out(out.reshape(b, n, d)), (weight * delta).sum(2)


class PointTransformer(nn.Module):
    def __init__(self, d: int = 32) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DistanceAttention(d, 4) for _ in range(2))

    def forward(self, feats: Tensor, coors: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        for layer in self.layers:
            out, moved = layer(feats, coors, mask)
            feats, coors = feats + out, coors + moved
        return feats, coors


class GatedPairAttention(nn.Module):
    """AlphaFold's gate for each channel, and beside it a choice of heads for each residue."""

    def __init__(self, c: int, heads: int, c_pair: int | None) -> None:
        super().__init__()
        self.h, self.c = heads, c // heads
        self.linear_q, self.linear_k, self.linear_v = (
            nn.Linear(c, c, bias=False) for _ in range(3)
        )
        self.linear_g, self.linear_o = nn.Linear(c, c), nn.Linear(c, c)
        self.pair = nn.Linear(c_pair or c, heads, bias=False)
        self.choose = nn.Linear(c, heads)

    def forward(self, x: Tensor, pair: Tensor, mask: Tensor) -> Tensor:
        q = self.linear_q(x).view(*x.shape[:-1], self.h, -1).transpose(-2, -3) / math.sqrt(self.c)
        k = self.linear_k(x).view(*x.shape[:-1], self.h, -1).transpose(-2, -3)
        v = self.linear_v(x).view(*x.shape[:-1], self.h, -1).transpose(-2, -3)
        bias = 1e9 * (mask - 1)[..., None, None, :]
        a = torch.matmul(q, k.transpose(-1, -2)) + bias
        a = a + self.pair(pair).permute(0, 3, 1, 2).unsqueeze(1)
        o = torch.matmul(torch.softmax(a, dim=-1), v).transpose(-2, -3)
        g = torch.sigmoid(self.linear_g(x)).view(*x.shape[:-1], self.h, -1)
        logits = self.choose(x)
        drop = logits.topk(self.h - 2, dim=-1, largest=False).indices
        logits = logits.scatter(-1, drop, float("-inf"))
        o = o * g * torch.softmax(logits, dim=-1).unsqueeze(-1)
        return self.linear_o(o.flatten(-2))


class Evoformer(nn.Module):
    """Row attention of the alignment with pair bias, then triangle attention around nodes."""

    def __init__(self, c: int = 32, c_pair: int = 16) -> None:
        super().__init__()
        self.row = GatedPairAttention(c, 4, c_pair)
        self.row_norm, self.pair_norm = nn.LayerNorm(c), nn.LayerNorm(c_pair)
        self.triangle_start = GatedPairAttention(c_pair, 4, None)
        self.triangle_end = GatedPairAttention(c_pair, 4, None)

    def forward(self, msa: Tensor, pair: Tensor, msa_mask: Tensor) -> tuple[Tensor, Tensor]:
        msa = msa + self.row(self.row_norm(msa), pair, msa_mask)
        ones = pair.new_ones(pair.shape[:-1])
        z = self.pair_norm(pair)
        pair = pair + self.triangle_start(z, z, ones)
        z = self.pair_norm(pair).transpose(-2, -3)
        pair = pair + self.triangle_end(z, z, ones.transpose(-1, -2)).transpose(-2, -3)
        return msa, pair


def _molecules(batch: int = 2, nodes: int = 7) -> tuple[ModelInput, ...]:
    made = torch.Generator().manual_seed(5)
    atoms = torch.randint(0, 20, (batch, nodes), generator=made)
    dist = torch.randint(0, 6, (batch, nodes, nodes), generator=made)
    sizes = torch.tensor([nodes - 2 * (i % 2) for i in range(batch)])
    return (
        ModelInput("atoms", atoms, {0: "batch", 1: "nodes"}),
        ModelInput("dist", dist, {0: "batch", 1: "nodes", 2: "nodes"}),
        ModelInput("num_nodes", sizes, {0: "batch"}),
    )


def _edges(nodes: int = 8, edges: int = 21) -> tuple[ModelInput, ...]:
    pairs = torch.randint(0, nodes, (2, edges), generator=torch.Generator().manual_seed(2))
    return (
        ModelInput("x", noise(nodes, 32), {0: "nodes"}),
        ModelInput("edge_index", pairs, {1: "edges"}),
    )


def _points(batch: int = 2, points: int = 6) -> tuple[ModelInput, ...]:
    mask = torch.ones(batch, points, dtype=torch.bool)
    mask[-1, -2:] = False
    dims = {0: "batch", 1: "points"}
    return (
        ModelInput("feats", noise(batch, points, 32), dims),
        ModelInput("coors", noise(batch, points, 3, seed=1), dims),
        ModelInput("mask", mask, dims),
    )


def _alignment(batch: int = 1, rows: int = 3, residues: int = 6) -> tuple[ModelInput, ...]:
    mask = torch.ones(batch, rows, residues)
    mask[..., -1] = 0.0
    return (
        ModelInput("msa", noise(batch, rows, residues, 32), {1: "rows", 2: "residues"}),
        ModelInput(
            "pair", noise(batch, residues, residues, 16, seed=1), {1: "residues", 2: "residues"}
        ),
        ModelInput("msa_mask", mask, {1: "rows", 2: "residues"}),
    )


_THREE = ExpectedLayer(4, 4, 3, 0, "top_k")
_CUT = ExpectedLayer(4, 4, None, None, "custom")
_PAIR = ExpectedLayer(4, 4, 2, 0, "ranked")

MODELS: list[ZooModel] = [
    ZooModel(
        "graph_graphormer",
        seeded(Graphormer),
        _molecules,
        Expected((_THREE, _THREE)),
        "scores turned into [B, N, N, H] and back for softmax; -inf written by a mask",
    ),
    ZooModel(
        "graph_gat",
        seeded(SparseGAT),
        _edges,
        Expected(),
        "sparse edges: gated heads, softmax by scatter; not expressible, to be said so",
    ),
    ZooModel(
        "graph_points",
        seeded(PointTransformer),
        _points,
        Expected((_CUT, _CUT)),
        "cdist; the attention weights move coordinates, too, so they have a second reader",
    ),
    ZooModel(
        "graph_evoformer",
        seeded(Evoformer),
        _alignment,
        Expected((_PAIR, _PAIR, _PAIR)),
        "5-dimensional attention with pair bias; gates of channels and of heads multiplied",
    ),
]
