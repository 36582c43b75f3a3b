from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram

from moh_deploy.frontend.fx.graph import ancestors, op
from moh_deploy.frontend.normalize import normalize
from moh_deploy.frontend.normalize.fold import fold_constants
from moh_deploy.frontend.prove.record import record
from moh_deploy.frontend.recognize import recognize
from moh_deploy.frontend.rewrite import Rewrite, commit, insert
from tests.frontend.traced import nodes, plain_trace
from tests.nightly import in_turn, sampled

B, S, C, H, D = 2, 5, 12, 4, 3
X = torch.randn(B, S, C, generator=torch.Generator().manual_seed(0))

Cut = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
"""Takes query, key and value [B, H, S, D] out of a packed projection [B, S, 3*H*D]."""


class Packed(nn.Module):
    """An MoH layer whose query, key and value come from one weight."""

    def __init__(self, cut: Cut, *, bias: bool = True, columns: int = 3 * C) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cut = cut
        self.qkv = nn.Linear(C, columns, bias=bias)
        self.gate, self.proj = nn.Linear(C, H, bias=False), nn.Linear(C, C)

    def packed(self, x: Tensor) -> Tensor:
        return self.qkv(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x, self.packed(x))

    def attend(self, x: Tensor, packed: Tensor) -> Tensor:
        q, k, v = self.cut(packed)
        groups = q.shape[1] // k.shape[1]
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=groups > 1)
        return self.proj((y.transpose(1, 2) * self.gate(x).relu()[..., None]).flatten(2))


def heads(x: Tensor, count: int = H) -> Tensor:
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def vit(packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(packed.reshape(B, S, 3, H, D).permute(2, 0, 3, 1, 4).unbind(0))


SPELLINGS: dict[str, Cut] = {
    "reshape_permute_unbind": vit,
    "reshape_permute_index": lambda p: tuple(
        p.view(B, S, 3, H, D).permute(2, 0, 3, 1, 4)[i] for i in range(3)
    ),
    "chunk": lambda p: tuple(heads(part) for part in p.chunk(3, dim=-1)),
    "split": lambda p: tuple(heads(part) for part in p.split(C, dim=2)),
    "slices": lambda p: (heads(p[..., :C]), heads(p[..., C : 2 * C]), heads(p[:, :, 2 * C :])),
    "select": lambda p: tuple(heads(p.unflatten(-1, (3, C)).select(2, i)) for i in range(3)),
    "split_and_squeeze": lambda p: tuple(
        part.squeeze(0) for part in p.reshape(B, S, 3, H, D).permute(2, 0, 3, 1, 4).split(1)
    ),
    "head_major": lambda p: tuple(p.view(B, S, H, 3, D).permute(3, 0, 2, 1, 4).unbind(0)),
    "head_major_chunk": lambda p: tuple(
        part.transpose(1, 2) for part in p.view(B, S, H, 3 * D).chunk(3, dim=-1)
    ),
    "qkv_innermost": lambda p: tuple(p.view(B, S, H, D, 3).permute(4, 0, 2, 1, 3).unbind(0)),
    "query_then_memory": lambda p: (
        heads(p[..., :C]),
        *(heads(part) for part in p[..., C:].chunk(2, dim=-1)),
    ),
    "in_another_order": lambda p: tuple(heads(p.chunk(3, dim=-1)[i]) for i in (2, 0, 1)),
    "dropout": lambda p: vit(F.dropout(p, 0.1, training=False)),
}


def rewritten(model: nn.Module) -> tuple[ExportedProgram, Rewrite]:
    """The program with the new operators beside the original ones, which must agree."""
    program = normalize(plain_trace(model, X))
    (found,) = insert(program, recognize(program))
    (layer,) = record(program, [found], [X]).layers
    assert layer.disagreement is None
    return program, found


def committed(model: nn.Module) -> ExportedProgram:
    program, found = rewritten(model)
    done = commit(program, [found])
    fold_constants(done)
    expected = model(X)
    torch.testing.assert_close(done.module()(X)[0], expected)
    return done


def attention_operands(program: ExportedProgram) -> list[str]:
    (attention,) = nodes(program, "attention")
    return [op(node).replace("query_projection", "linear") for node in attention.args[:3]]


PROJECTIONS = {"linear", "query_projection", "attention", "output_projection"}


def reads(program: ExportedProgram) -> set[str]:
    """The operators that the outputs depend on."""
    (output,) = program.graph.find_nodes(op="output")
    return {op(node) for node in ancestors(output) if op(node)}


@sampled(5)
@pytest.mark.parametrize(("spelling", "bias"), in_turn(SPELLINGS, [True, False]))
def test_packed_weight_becomes_one_weight_for_each(spelling: str, bias: bool):
    program = committed(Packed(SPELLINGS[spelling], bias=bias))
    assert attention_operands(program) == ["linear"] * 3
    assert reads(program) <= {*PROJECTIONS, "relu", "unflatten", "contiguous"}


def test_fewer_heads_of_keys_are_cut_unevenly():
    def cut(p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = p.unflatten(-1, (H + 4, D)).split([H, 2, 2], dim=2)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    program = committed(Packed(cut, columns=(H + 4) * D))
    assert attention_operands(program) == ["linear"] * 3
    assert not reads(program) & {"split_with_sizes", "slice", "permute"}


class Parameter(Packed):
    """`x @ W + b`, with W [C, 3*C]."""

    def __init__(self, cut: Cut) -> None:
        super().__init__(cut)
        self.weight = nn.Parameter(self.qkv.weight.mT.detach().clone())
        self.bias = nn.Parameter(self.qkv.bias.detach().clone())
        del self.qkv

    def packed(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class FlatTokens(Parameter):
    def packed(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.reshape(B * S, C), self.weight).view(B, S, -1)


class Einsum(Parameter):
    """A weight with an axis for each of query, key and value, heads and head dimension."""

    def packed(self, x: Tensor) -> Tensor:
        return torch.einsum("bsc,cthd->bsthd", x, self.weight.view(C, 3, H, D))


@sampled(2)
@pytest.mark.parametrize(
    ("model", "spelling"),
    [
        (Parameter, "reshape_permute_unbind"),
        (Parameter, "head_major"),
        (FlatTokens, "reshape_permute_unbind"),
        (FlatTokens, "head_major"),
        (Einsum, "reshape_permute_unbind"),
    ],
)
def test_products_with_parameters_are_split(model: type[Parameter], spelling: str):
    program = committed(model(SPELLINGS[spelling]))
    regrouped = "unflatten" if model is FlatTokens else "linear"
    assert attention_operands(program) == ["linear", regrouped, regrouped]
    assert not reads(program) & {"slice", "permute", "getitem"}


class Normalized(Packed):
    """Keys are normalised head by head: the attention reads no projection of keys."""

    def attend(self, x: Tensor, packed: Tensor) -> Tensor:
        q, k, v = vit(packed)
        y = F.scaled_dot_product_attention(q, F.layer_norm(k, (D,)), v)
        return self.proj((y.transpose(1, 2) * self.gate(x).relu()[..., None]).flatten(2))


def test_parts_that_are_worked_on_are_split_too():
    program = committed(Normalized(vit))
    assert not reads(program) & {"unbind", "slice", "getitem"}


class RouterReadsQuery(Packed):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = vit(self.packed(x))
        gates = (q.norm(dim=-1) - 0.5).relu().transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj((y.transpose(1, 2) * gates[..., None]).flatten(2))


def test_others_who_read_a_part_read_the_new_one():
    program = committed(RouterReadsQuery(vit))
    assert attention_operands(program) == ["linear"] * 3
    assert not reads(program) & {"unbind", "slice", "getitem"}


class ReadUncut(Packed):
    def forward(self, x: Tensor) -> Tensor:
        packed = self.packed(x)
        return self.attend(x, packed) + packed.mean(dim=-1, keepdim=True)


class Adapted(Packed):
    """A low-rank adapter beside the projection: the sum is cut, and is no product with weights."""

    def __init__(self) -> None:
        super().__init__(vit)
        self.down, self.up = nn.Linear(C, 2, bias=False), nn.Linear(2, 3 * C, bias=False)

    def packed(self, x: Tensor) -> Tensor:
        return self.qkv(x) + 0.5 * self.up(self.down(x))


class CutAlongTokens(Packed):
    def attend(self, x: Tensor, packed: Tensor) -> Tensor:
        q, k, v = (heads(part) for part in packed[:, :-1].chunk(3, dim=-1))
        y = F.scaled_dot_product_attention(q, k, v)
        gates = self.gate(x[:, :-1]).relu()
        return self.proj((y.transpose(1, 2) * gates[..., None]).flatten(2))


@pytest.mark.parametrize("model", [lambda: ReadUncut(vit), Adapted, lambda: CutAlongTokens(vit)])
def test_projection_that_is_needed_whole_is_computed_once(model: Callable[[], nn.Module]):
    built = model()
    program, found = rewritten(built)
    assert found.swaps == ()
    done = commit(program, [found])
    torch.testing.assert_close(done.module()(X)[0], built(X))


class HalvesOfQuery(nn.Module):
    """Rotates the query in two halves: those are no packed projection."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v = (nn.Linear(C, H * 4) for _ in range(3))
        self.gate = nn.Linear(C, H, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        first, second = heads(self.q(x)).chunk(2, dim=-1)
        q = torch.cat([first * 0.6 - second * 0.8, second * 0.6 + first * 0.8], dim=-1)
        y = F.scaled_dot_product_attention(q, heads(self.k(x)), heads(self.v(x)))
        return (y.transpose(1, 2) * self.gate(x).relu()[..., None]).flatten(2) * 1.0


def test_halves_of_one_projection_stay_together():
    _, found = rewritten(HalvesOfQuery())
    assert found.swaps == ()


def test_wrong_part_keeps_the_layer(monkeypatch: pytest.MonkeyPatch):
    from moh_deploy.frontend.rewrite import split

    def next_entry(layouts, weight, windows, wanted):
        starts = [(window.start + 1) % 3 for window in windows]
        moved = [replace(w, start=s, stop=s + 1) for w, s in zip(windows, starts, strict=True)]
        return right(layouts, weight, moved, wanted)

    right = split.cut_weight
    monkeypatch.setattr(split, "cut_weight", next_entry)
    program = normalize(plain_trace(Packed(vit), X))
    (found,) = insert(program, recognize(program))
    (layer,) = record(program, [found], [X]).layers
    assert layer.disagreement.startswith("a part of a packed projection differs")
    kept = commit(program, [found.kept(layer.disagreement)])
    torch.testing.assert_close(kept.module()(X)[0], Packed(vit)(X))
