"""Attention that is built with the heads in front of the tokens, in several spellings."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

from moh_deploy.frontend.fx.axes import Layout, flat, fresh_layout
from moh_deploy.frontend.fx.commuting import Reading, read_commuting
from moh_deploy.frontend.fx.graph import ancestors, nodes_that_depend_on, op, rank, shape, tensor
from moh_deploy.frontend.fx.views import REORDERS, forward
from moh_deploy.frontend.normalize import normalize
from moh_deploy.frontend.prove.record import record
from moh_deploy.frontend.recognize import recognize
from moh_deploy.frontend.rewrite import Rewrite, commit, insert, tokens_first
from tests.frontend.traced import Values, plain_trace
from tests.nightly import sampled

B, H, KV, S, D = 2, 4, 2, 5, 8
C = H * D
SDPA = F.scaled_dot_product_attention

Turn = Callable[[Tensor], Tensor]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


COS, SIN = random(S, D, seed=1), random(S, D, seed=2)
MASK = random(B, 1, S, S, seed=3)


def half_turned(x: Tensor) -> Tensor:
    return torch.cat((-x[..., D // 2 :], x[..., : D // 2]), dim=-1)


def chunks_turned(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def pairs_turned(x: Tensor) -> Tensor:
    return torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)


def unbound_pairs_turned(x: Tensor) -> Tensor:
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((-odd, even), dim=-1).reshape(x.shape)


def rotated(x: Tensor, turned: Turn = half_turned) -> Tensor:
    cos, sin = COS[None, None], SIN[None].unsqueeze(1)
    return x * cos + turned(x) * sin


def rotated_in_pairs(x: Tensor) -> Tensor:
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = COS[:, ::2], SIN[:, ::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def rms_normed(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + 1e-6) * COS[0]


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True).clamp_min(1e-6)


def norms_squeezed(x: Tensor) -> Tensor:
    return x / torch.linalg.vector_norm(x, dim=-1).unsqueeze(-1)


def partly_rotated(x: Tensor) -> Tensor:
    turned, plain = x.split([4, 4], dim=-1)
    return torch.cat((turned * SIN[:, :4] + COS[:, :4], plain), dim=-1)


def in_double(x: Tensor) -> Tensor:
    return (x.double() * COS.double()).to(x.dtype)


ROW_BY_ROW: dict[str, Turn] = {
    "half": rotated,
    "chunks": lambda x: rotated(x, chunks_turned),
    "pairs": lambda x: rotated(x, pairs_turned),
    "unbound": lambda x: rotated(x, unbound_pairs_turned),
    "rotated_in_pairs": rotated_in_pairs,
    "partly_rotated": partly_rotated,
    "rms": rms_normed,
    "rms_norm": lambda x: F.rms_norm(x, (D,), COS[0]),
    "layer_norm": lambda x: F.layer_norm(x, (D,), COS[0], SIN[0]),
    "normalize": lambda x: F.normalize(x, dim=-1),
    "unit": unit,
    "norms_squeezed": norms_squeezed,
    "norm_then_rotated": lambda x: rotated(rms_normed(x)),
    "scaled_before": lambda x: rotated(x * 0.5),
    "scaled_behind": lambda x: rotated(x) / 3,
    "biased_by_head": lambda x: rotated(x + COS[:4, None].sum(-1, keepdim=True)[:, :, :1])[..., :D],
    "in_double": in_double,
    "softmax_of_entries": lambda x: x.softmax(-1),
    "projected_by_head": lambda x: x @ COS[:, :D].mT @ COS[:, :D],
    "flipped": lambda x: x.flip(-1) * COS,
    "expanded": lambda x: x + COS.expand(B, x.shape[1], S, D) * 2,
}


class Layer(nn.Module):
    """Attention with gates of the tokens.

    Args:
        query, key: Applied to [B, H, S, D].
        attend: Of query, key and value.
    """

    def __init__(
        self,
        query: Turn = rotated,
        key: Turn | None = None,
        value: Turn = lambda x: x,
        attend: Callable[[Tensor, Tensor, Tensor], Tensor] = SDPA,
        num_kv_heads: int = H,
    ) -> None:
        super().__init__()
        self.turns, self.attend, self.groups = (
            (query, key or query, value),
            attend,
            H // num_kv_heads,
        )
        width = num_kv_heads * D
        self.q, self.k, self.v = nn.Linear(C, C), nn.Linear(C, width), nn.Linear(C, width)
        self.gate, self.proj = nn.Linear(C, H), nn.Linear(C, C)

    def heads(self, x: Tensor) -> list[Tensor]:
        layers = zip((self.q, self.k, self.v), self.turns, strict=True)
        return [turn(layer(x).view(B, S, -1, D).transpose(1, 2)) for layer, turn in layers]

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.heads(x)
        key, value = (part.repeat_interleave(self.groups, 1) for part in (key, value))
        y = self.attend(query, key, value).transpose(1, 2)  # [B, S, H, D]
        return self.proj((y * self.gate(x).relu()[..., None]).reshape(B, S, C))


def rewritten(module: nn.Module, *arguments: Tensor) -> tuple[Rewrite, ExportedProgram]:
    """The layer and the program with the new operators, compared with the original ones."""
    torch.manual_seed(0)
    program = normalize(plain_trace(module, *arguments))
    (found,) = insert(program, recognize(program))
    values = Values(program, *arguments)
    assert found.replacement is not None, found.reason
    torch.testing.assert_close(
        values.of[found.replacement], values.of[found.layer.node], rtol=0, atol=1e-6
    )
    return found, commit(program, [found])


def transposes(program: ExportedProgram) -> list[Node]:
    """Those that move the entries of an activation in every run."""
    graph = program.graph
    dynamic = nodes_that_depend_on(graph, program.graph_signature.user_inputs)
    needed = set(ancestors(graph.output_node()))
    return [node for node in dynamic & needed if op(node) in REORDERS and moves(node)]


def moves(node: Node) -> bool:
    layout = fresh_layout(shape(node.args[0]))
    moved = forward(node, layout)
    assert moved is not None
    return flat(moved) != flat(layout)


X = random(B, S, C, seed=9)


@sampled(8)
@pytest.mark.parametrize("name", ROW_BY_ROW)
def test_no_transpose_is_left(name: str):
    found, program = rewritten(Layer(ROW_BY_ROW[name]), X)
    assert rank(found.attention) == 3
    assert transposes(program) == []


def written_out(scale: Callable[[Tensor], Tensor]):
    return lambda q, k, v: scale(q @ k.mT).softmax(-1) @ v


ATTENDS = {
    "causal": lambda q, k, v: SDPA(q, k, v, is_causal=True),
    "additive_mask": lambda q, k, v: SDPA(q, k, v, attn_mask=MASK),
    "bool_mask": lambda q, k, v: SDPA(q, k, v, attn_mask=MASK > -1),
    "scale": lambda q, k, v: SDPA(q * 3, k / 2, v, scale=0.25),
    "scaled_scores": written_out(lambda scores: scores / 4),
    "temperature_of_each_head": written_out(lambda scores: scores * COS[:4, :1, None].exp()),
    "bias_of_each_head": written_out(lambda scores: scores + COS[:4, :S, None]),
}


@sampled(10)
@pytest.mark.parametrize("name", ATTENDS)
@pytest.mark.parametrize("num_kv_heads", [1, KV, H])
def test_however_it_is_attended(name: str, num_kv_heads: int):
    module = Layer(attend=ATTENDS[name], num_kv_heads=num_kv_heads)
    found, program = rewritten(module, X)
    assert found.num_kv_heads == num_kv_heads
    assert transposes(program) == []


def summed_up(x: Tensor) -> Tensor:
    return x.cumsum(dim=2)


def shared_out(x: Tensor) -> Tensor:
    return x.softmax(dim=1)


@pytest.mark.parametrize("turn", [summed_up, shared_out])
def test_operator_along_tokens_or_heads_stays_where_it_is(turn: Turn):
    """Two Transposes for the one operand, and none for the others: less than four."""
    found, program = rewritten(Layer(lambda x: x, lambda x: turn(x) * COS), X)
    assert rank(found.attention) == 3
    assert len(transposes(program)) == 2


@pytest.mark.parametrize("turn", [summed_up, shared_out])
def test_layer_stays_where_that_saves_nothing(turn: Turn):
    found, program = rewritten(Layer(turn), X)
    assert rank(found.attention) == 4
    assert len(transposes(program)) == 4


class Tables(Layer):
    """Queries and keys are multiplied with an input."""

    def forward(self, x: Tensor, *tables: Tensor) -> Tensor:
        self.turns = (*(lambda y, t=table: y * t for table in tables), *self.turns[len(tables) :])
        return super().forward(x)


def test_table_that_differs_by_head_and_token_counts():
    found, program = rewritten(Tables(), X, random(1, H, S, D))
    assert rank(found.attention) == 3
    assert [tensor(node).numel() for node in transposes(program)] == [H * S * D]


def test_three_tables_that_differ_by_head_and_token_are_less_than_four_activations():
    tables = [random(B, H, S, D, seed=seed) for seed in range(3)]
    found, program = rewritten(Tables(), X, *tables)
    assert rank(found.attention) == 3
    assert len(transposes(program)) == 3


class OneTable(Layer):
    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        self.turns = (lambda y: y * table, lambda y: y + table, lambda y: y)
        return super().forward(x)


def test_table_of_queries_and_keys_is_transposed_once():
    found, program = rewritten(OneTable(), X, random(B, H, S, D))
    assert rank(found.attention) == 3
    assert len(transposes(program)) == 1


class TwoTables(Layer):
    def forward(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        self.turns = (lambda y: y * a[:1] + b[:1], lambda y: y * a[1:] + b[1:], lambda y: y)
        return super().forward(x)


def test_layer_stays_where_its_tables_are_as_many():
    tables = [random(2, H, S, D, seed=seed) for seed in range(2)]
    found, program = rewritten(TwoTables(), X, *tables)
    assert rank(found.attention) == 4
    assert len(transposes(program)) == 4


class Cached(Layer):
    """Keys and values are appended to a cache."""

    def forward(self, x: Tensor, past: Tensor) -> tuple[Tensor, ...]:
        present: list[Tensor] = []

        def appended(turn: Turn) -> Turn:
            def append(y: Tensor) -> Tensor:
                present.append(torch.cat((past, turn(y)), dim=2))
                return present[-1]

            return append

        self.turns = (self.turns[0], *map(appended, self.turns[1:]))
        return (super().forward(x), *present)


def test_cache_with_the_heads_in_front_keeps_them_there():
    """Transposing cached keys and values costs more than the queries and the result."""
    found, program = rewritten(Cached(), X, random(B, H, 7, D))
    assert rank(found.attention) == 4
    assert len(transposes(program)) == 4


class FirstCached(Layer):
    """Keys and values are outputs, with the heads in front."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        query, key, value = self.heads(x)
        y = self.attend(query, key, value).transpose(1, 2)
        return self.proj((y * self.gate(x).relu()[..., None]).reshape(B, S, C)), key, value


def test_operand_that_is_an_output_is_computed_once():
    """The keys are transposed for the output and back; queries, values and the result are not."""
    found, program = rewritten(FirstCached(), X)
    assert rank(found.attention) == 3
    assert len(transposes(program)) == 3


class RoutedByNorm(Layer):
    """Tokens take the heads of their longest queries."""

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.heads(x)
        gates = (self.q(x).view(B, S, H, D).norm(dim=-1) - 1).relu()
        y = self.attend(query, key, value) * gates.mT[..., None]
        return self.proj(y.transpose(1, 2).reshape(B, S, C))


def test_gates_may_be_multiplied_with_the_heads_in_front():
    found, program = rewritten(RoutedByNorm(), X)
    assert rank(found.attention) == 3
    assert len(transposes(program)) == 0


class Packed(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(C, 3 * C)

    def heads(self, x: Tensor) -> list[Tensor]:
        query, key, value = self.qkv(x).view(B, S, 3, H, D).permute(2, 0, 3, 1, 4)
        return [rotated(rms_normed(query)), rotated(rms_normed(key)), value]


def test_parts_of_a_packed_projection_are_rotated():
    found, program = rewritten(Packed(), X)
    assert rank(found.attention) == 3
    assert transposes(program) == []


@pytest.mark.parametrize("turn", [summed_up, shared_out])
def test_operator_that_is_moved_wrongly_is_noticed(turn: Turn, monkeypatch: pytest.MonkeyPatch):
    """Taken for elementwise, it works along another dimension."""

    def careless(node: Node, layout: Layout) -> Reading | None:
        found = read_commuting(node, layout)
        along_others = found is not None and any(dim < -1 for dim in found.along)
        return replace(found, suffix=None, result_suffix=0) if along_others else found

    monkeypatch.setattr(tokens_first, "read_commuting", careless)
    torch.manual_seed(0)
    program = normalize(plain_trace(Layer(turn), X))
    rewrites = insert(program, recognize(program))
    (layer,) = record(program, rewrites, [X]).layers
    assert layer.disagreement is not None
    assert "MoHAttention differs from the original" in layer.disagreement
