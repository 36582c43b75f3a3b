from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moh_deploy.frontend.fx.graph import shape
from moh_deploy.frontend.load.model import ModelInput
from moh_deploy.frontend.load.pt2 import load_program
from moh_deploy.frontend.normalize import normalize
from moh_deploy.frontend.quiet import no_warnings
from tests.frontend.traced import nodes, plain_trace, traced
from tests.nightly import nightly, sampled


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


EINSUMS = {
    "gates_heads_and_projection": ("bsh,bhsd,chd->bsc", [(2, 5, 4), (2, 4, 5, 3), (6, 4, 3)]),
    "four_operands": ("ab,bc,cd,de->ae", [(2, 3), (3, 4), (4, 5), (5, 6)]),
    "letter_in_all": ("bi,bi,bi->b", [(2, 3), (2, 3), (2, 3)]),
    "outer": ("a,b,c->cab", [(2,), (3,), (4,)]),
    "spaces": ("ab , bc , cd -> ad", [(2, 3), (3, 4), (4, 5)]),
}


@sampled(2)
@pytest.mark.parametrize("name", EINSUMS)
def test_einsum_of_many_becomes_products_of_two(name: str):
    equation, shapes = EINSUMS[name]
    operands = [random(*shape) for shape in shapes]
    program = normalize(plain_trace(lambda *x: torch.einsum(equation, *x), *operands))
    assert [len(node.args[1]) for node in nodes(program, "einsum")] == [2] * (len(shapes) - 1)
    torch.testing.assert_close(program.module()(*operands), torch.einsum(equation, *operands))


@pytest.mark.parametrize("equation", ["...ab,...bc,...cd->...ad", "ab,bc,cd"])
def test_einsum_that_does_not_say_all_letters_stays(equation: str):
    operands = [random(2, 2)] * 3
    program = normalize(plain_trace(lambda *x: torch.einsum(equation, *x), *operands))
    assert [len(node.args[1]) for node in nodes(program, "einsum")] == [3]
    torch.testing.assert_close(program.module()(*operands), torch.einsum(equation, *operands))


@pytest.mark.parametrize("factors", [{}, {"alpha": 0.5}, {"beta": 2.0}, {"alpha": 3, "beta": 0.1}])
def test_baddbmm_is_written_out(factors: dict[str, float]):
    operands = [random(2, 3, 5), random(2, 3, 4), random(2, 4, 5)]
    program = normalize(plain_trace(lambda *x: torch.baddbmm(*x, **factors), *operands))
    assert nodes(program, "baddbmm") == []
    torch.testing.assert_close(program.module()(*operands), torch.baddbmm(*operands, **factors))


@pytest.mark.parametrize(
    ("base", "added"), [(torch.zeros_like, 0), (lambda y: y.new_zeros(3, 2, 4), 1), (torch.exp, 1)]
)
def test_addcmul_is_written_out(base: Callable[[Tensor], Tensor], added: int):
    def model(y: Tensor, g: Tensor) -> Tensor:
        return torch.addcmul(base(y), y, g, value=2) - 1

    y, g = random(2, 4), random(1, 4)
    program = normalize(plain_trace(model, y, g))
    assert nodes(program, "addcmul") == []
    assert len(nodes(program, "add")) == added
    torch.testing.assert_close(program.module()(y, g), model(y, g))


def test_baddbmm_with_beta_0_does_not_read_its_first_operand():
    def model(a: Tensor, b: Tensor) -> Tensor:
        return torch.baddbmm(torch.full((2, 3, 5), torch.nan), a, b, beta=0, alpha=0.5)

    a, b = random(2, 3, 4), random(2, 4, 5)
    program = normalize(plain_trace(model, a, b))
    assert nodes(program, "baddbmm") == nodes(program, "full") == []
    torch.testing.assert_close(program.module()(a, b), model(a, b))


def fill(keep: Tensor, pad: Tensor) -> Tensor:
    return keep.masked_fill(pad, False)


def write(keep: Tensor, pad: Tensor) -> Tensor:
    keep = keep.clone()
    keep[pad] = False
    return keep


@pytest.mark.parametrize("without", [fill, write])
def test_mask_of_what_is_kept_stays_one(without: Callable[[Tensor, Tensor], Tensor]):
    def model(x: Tensor, pad: Tensor) -> Tensor:
        return x.masked_fill(~without(torch.ones_like(pad).tril(), pad), -1)

    x, pad = random(3, 3), torch.tensor([[True, False, False]]).expand(3, 3)
    program = normalize(plain_trace(model, x, pad))
    assert len(nodes(program, "masked_fill")) == 1
    torch.testing.assert_close(program.module()(x, pad), model(x, pad))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16])
def test_triangle_of_narrow_numbers_is_one_of_wide_numbers(dtype: torch.dtype):
    def model(x: Tensor) -> Tensor:
        return torch.ones_like(x, dtype=dtype).tril(1)

    program = normalize(plain_trace(model, random(3, 5)))
    assert [node.meta["val"].dtype for node in nodes(program, "tril")] == [torch.int64]
    got = program.module()(random(3, 5))
    torch.testing.assert_close(got, model(random(3, 5)))


def test_expand_as_reads_nothing_but_a_size():
    def model(g: Tensor, y: Tensor) -> Tensor:
        return g[..., None].expand_as(y.exp()) - 1

    g, y = random(4, 3), random(2, 4, 3, 5)
    program = normalize(plain_trace(model, g, y))
    assert nodes(program, "expand_as") == nodes(program, "exp") == []
    torch.testing.assert_close(program.module()(g, y), model(g, y))


@pytest.mark.parametrize("dim", [0, 1, -1, None])
def test_repetition_by_a_dynamic_size_is_written_out(dim: int | None):
    class Repeats(torch.nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x.repeat_interleave(y.shape[0], dim=dim) - 1

    x, sizes = random(2, 4, 3), torch.export.Dim("sizes")
    program = torch.export.export(Repeats(), (x, random(5)), dynamic_shapes=(None, {0: sizes}))
    program = normalize(program)
    assert nodes(program, "repeat_interleave") == []
    y = random(7)
    torch.testing.assert_close(program.module()(x, y), Repeats()(x, y))


@pytest.mark.parametrize("apart", [lambda y, b: y.split(b), lambda y, b: y.chunk(3)])
def test_parts_of_a_dynamic_size_are_selected(apart: Callable[[Tensor, int], list[Tensor]]):
    """Heads go into the batch and come back: torch.onnx fails at a split by a dynamic size."""

    class InTheBatch(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.cat(x.split(2, -1)).sin()
            return torch.cat(list(apart(y, x.shape[0])), -1).cos()

    program = traced(InTheBatch(), [ModelInput("x", random(2, 5, 6), {0: "b"})])
    (joined,) = [node for node in nodes(program, "unflatten") if -1 in node.args[2]]
    assert joined.args[2] == [3, -1]
    # Of both ways, there and back, a dimension is moved.
    assert len(nodes(program, "permute")) == 2
    assert nodes(program, "cat") == nodes(program, "split") == nodes(program, "chunk") == []
    for batch in (1, 4):
        x = random(batch, 5, 6)
        torch.testing.assert_close(program.module()(x), InTheBatch()(x))


def test_pieces_of_which_the_last_is_smaller_stay():
    class Halves(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            first, second = x.split((x.shape[0] + 2) // 2)
            return first.sum(0) - second.sum(0)

    program = traced(Halves(), [ModelInput("x", random(5, 3), {0: "b"})])
    assert len(nodes(program, "split")) == 1
    x = random(7, 3)
    torch.testing.assert_close(program.module()(x), Halves()(x))


def test_sigmoid_of_the_best_is_chosen_of_all():
    def model(x: Tensor) -> Tensor:
        best, places = x.topk(2, dim=1, sorted=False)
        return best.sigmoid() * places

    x = random(3, 5, 2)
    program = normalize(plain_trace(model, x))
    (gather,), (sigmoid,) = nodes(program, "gather"), nodes(program, "sigmoid")
    assert gather.args[0] is sigmoid
    assert tuple(sigmoid.meta["val"].shape) == (3, 5, 2)
    torch.testing.assert_close(program.module()(x), model(x))


def test_sigmoid_of_anything_else_stays():
    def model(x: Tensor) -> Tensor:
        return x.max(1).values.sigmoid() + x.topk(2, dim=1).values.exp().sigmoid().sum(1)

    x = random(3, 5, 2)
    program = normalize(plain_trace(model, x))
    assert nodes(program, "gather") == []
    torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.parametrize(("dims", "keepdim"), [([0], False), ([0], True), ([1, -1], False)])
def test_sum_of_an_einsum_is_an_einsum(dims: list[int], keepdim: bool):
    def model(y: Tensor, w: Tensor) -> Tensor:
        return torch.einsum("bshd,hdo->hbso", y, w).sum(dims, keepdim=keepdim)

    y, w = random(2, 3, 4, 5), random(4, 5, 6)
    program = normalize(plain_trace(model, y, w))
    assert nodes(program, "sum") == []
    torch.testing.assert_close(program.module()(y, w), model(y, w))


def test_einsum_that_is_read_elsewhere_keeps_its_sum():
    def model(y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        each = torch.einsum("bshd,hdo->hbso", y, w)
        return each, each.sum([0])

    program = normalize(plain_trace(model, random(2, 3, 4, 5), random(4, 5, 6)))
    assert len(nodes(program, "sum")) == 1


# Softmax that is written out, and what only looks like it.


X = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0))
WIDE = X.double() * 30


def shifted(x: Tensor, dim: int = -1) -> Tensor:
    return torch.exp(x - x.amax(dim, keepdim=True))


def over(e: Tensor, dim: int = -1) -> Tensor:
    return e / e.sum(dim, keepdim=True)


WRITTEN: dict[str, Callable[[Tensor], Tensor]] = {
    "largest_subtracted": lambda x: over(shifted(x)),
    "nothing_subtracted": lambda x: over(x.exp()),
    "along_another_dimension": lambda x: over(shifted(x, 1), 1),
    "with_max": lambda x: over(torch.exp(x - x.max(-1, keepdim=True).values.detach())),
    "dimensions_put_back": lambda x: (
        (e := torch.exp(x - x.max(1)[0].unsqueeze(1))) / e.sum(1)[:, None]
    ),
    "sum_expanded": lambda x: (e := x.exp()) / e.sum(-1, True).expand_as(e),
    "another_maximum": lambda x: over(torch.exp(x - x.amax(1, keepdim=True))),
    "a_number_subtracted": lambda x: over(torch.exp(x - 3)),
}


@sampled(4)
@pytest.mark.parametrize("name", WRITTEN)
def test_softmax_that_is_written_out_becomes_one(name: str):
    program = normalize(plain_trace(WRITTEN[name], X))
    assert len(nodes(program, "softmax")) == 1
    assert nodes(program, "div") == nodes(program, "exp") == []
    torch.testing.assert_close(program.module()(X), WRITTEN[name](X))


def test_largest_value_is_not_subtracted_twice():
    program = normalize(plain_trace(WRITTEN["largest_subtracted"], X))
    assert nodes(program, "sub") == nodes(program, "amax") == []


def test_large_scores_stay_finite():
    program = normalize(plain_trace(WRITTEN["along_another_dimension"], WIDE))
    torch.testing.assert_close(program.module()(WIDE), WIDE.softmax(1))


OTHER: dict[str, Callable[[Tensor], Tensor]] = {
    "plus_one": lambda x: (e := x.exp()) / (e.sum(-1, keepdim=True) + 1),
    "of_another_sum": lambda x: x.exp() / x.cos().exp().sum(-1, keepdim=True),
    "sum_along_the_other_dimension": lambda x: (e := x.exp()) / e.sum(-1)[:, None],
    "sum_of_everything": lambda x: (e := x.exp()) / e.sum((1, 2), keepdim=True),
    "mean": lambda x: (e := x.exp()) / e.mean(-1, keepdim=True),
    "power_of_two": lambda x: (e := x.exp2()) / e.sum(-1, keepdim=True),
    "the_other_way_round": lambda x: (e := x.exp()).sum(-1, keepdim=True) / e,
    "rounded_down": lambda x: torch.div(
        e := x.exp(), e.sum(-1, keepdim=True), rounding_mode="floor"
    ),
    "summed_in_float64": lambda x: (e := x.exp()) / e.sum(-1, keepdim=True, dtype=torch.float64),
}


@sampled(4)
@pytest.mark.parametrize("name", OTHER)
def test_anything_else_keeps_its_meaning(name: str):
    program = normalize(plain_trace(OTHER[name], X))
    assert nodes(program, "softmax") == []
    torch.testing.assert_close(program.module()(X), OTHER[name](X))


# Softmax whose rows of -inf are 0.


def safe(x: Tensor, hidden: Tensor) -> Tensor:
    return torch.where(hidden, torch.zeros_like(p := x.softmax(-1)), p)


SOME_HIDDEN = X.clone()
SOME_HIDDEN[:, 1] = SOME_HIDDEN[:, 2, 1:] = SOME_HIDDEN[1, :, 0] = -torch.inf
NO = -torch.inf


def some(hidden: Tensor) -> Tensor:
    return hidden.logical_not().any(-1, keepdim=True)


SAFE: dict[str, Callable[[Tensor], Tensor]] = {
    "all_hidden": lambda x: safe(x, (x == NO).all(-1, keepdim=True)),
    "none_visible": lambda x: safe(x, some(x == NO).logical_not()),
}
UNSAFE: dict[str, Callable[[Tensor], Tensor]] = {
    "along_another_dimension": lambda x: safe(x, (x == NO).all(1, keepdim=True)),
    "along_all_dimensions": lambda x: safe(x, (x == NO).all()),
    "some_hidden": lambda x: safe(x, (x == NO).any(-1, keepdim=True)),
    "not_all_hidden": lambda x: safe(x, (x == NO).all(-1, keepdim=True).logical_not()),
    "some_visible": lambda x: safe(x, some(x == NO)),
    "none_hidden": lambda x: safe(x, (x == NO).any(-1, keepdim=True).logical_not()),
    "another_number": lambda x: safe(x, (x == 0).all(-1, keepdim=True)),
    "other_scores": lambda x: safe(x, (X == NO).all(-1, keepdim=True)),
    "ones": lambda x: torch.where(
        (x == NO).all(-1, keepdim=True), torch.ones_like(p := x.softmax(-1)), p
    ),
}


@sampled(3)
@pytest.mark.parametrize("name", [*SAFE, *UNSAFE])
def test_softmax_of_hidden_rows_is_zero_where_that_is_written(name: str):
    function = {**SAFE, **UNSAFE}[name]
    program = normalize(plain_trace(function, SOME_HIDDEN))
    assert len(nodes(program, "safe_softmax")) == (name in SAFE)
    got = program.module()(SOME_HIDDEN)
    torch.testing.assert_close(got, function(SOME_HIDDEN), equal_nan=True)


@nightly
def test_attention_that_torch_decomposed_has_one_softmax():
    def model(x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(X, X, X, attn_mask=x)

    with no_warnings():
        program = normalize(plain_trace(model, SOME_HIDDEN).run_decompositions())
    assert len(nodes(program, "safe_softmax")) == 1
    assert nodes(program, "where") == []
    torch.testing.assert_close(program.module()(SOME_HIDDEN), model(SOME_HIDDEN))


IMAGE = torch.randn(2, 3, 7, 9, generator=torch.Generator().manual_seed(0))

WINDOWS = {
    "one": {"kernel_size": 1},
    "three_padded": {"kernel_size": 3, "padding": 1},
    "unlike_sides": {"kernel_size": (2, 3), "padding": (0, 1)},
    "stride": {"kernel_size": 3, "stride": 2},
    "unlike_strides": {"kernel_size": 2, "stride": (3, 1), "padding": (1, 0)},
    "dilation": {"kernel_size": 3, "dilation": 2, "padding": 2},
    "dilation_and_stride": {"kernel_size": (3, 2), "dilation": (1, 3), "stride": (2, 2)},
    "patches": {"kernel_size": (7, 3), "stride": (7, 3)},
}


@sampled(4)
@pytest.mark.parametrize("name", WINDOWS)
def test_windows_are_slices_of_the_padded_image(name: str):
    program = normalize(plain_trace(lambda x: F.unfold(x, **WINDOWS[name]), IMAGE))
    assert nodes(program, "im2col") == []
    assert torch.equal(program.module()(IMAGE), F.unfold(IMAGE, **WINDOWS[name]))


class Unfold(torch.nn.Module):
    def forward(self, x):
        return F.unfold(x, 3, padding=1, stride=2)


@nightly
def test_windows_of_images_of_any_size():
    program = traced(Unfold(), [ModelInput("x", IMAGE, {0: "batch", 2: "height", 3: "width"})])
    assert nodes(program, "im2col") == []
    for sizes in ((1, 3, 4, 5), (3, 3, 10, 8)):
        image = torch.randn(sizes)
        assert torch.equal(program.module()(image), F.unfold(image, 3, padding=1, stride=2))


def test_windows_of_a_program_from_a_file_keep_the_batch_dynamic(tmp_path: Path):
    batch = ({0: torch.export.Dim("batch")},)
    with torch.no_grad():
        program = torch.export.export(Unfold(), (IMAGE,), dynamic_shapes=batch)
    torch.export.save(program, tmp_path / "m.pt2")
    program = normalize(load_program(tmp_path / "m.pt2", trust_pickle=False))
    for node in nodes(program, "slice"):
        assert not shape(node)[0].is_Integer
    image = random(3, 3, 7, 9)
    assert torch.equal(program.module()(image), F.unfold(image, 3, padding=1, stride=2))


def test_single_image_keeps_its_operator():
    program = normalize(plain_trace(lambda x: F.unfold(x, 3), IMAGE[0]))
    assert len(nodes(program, "im2col")) == 1
    assert torch.equal(program.module()(IMAGE[0]), F.unfold(IMAGE[0], 3))


def test_dropout_that_drops_nothing_is_gone():
    def two(x: Tensor) -> Tensor:
        return F.dropout(F.dropout2d(x, 0.5, training=False) + 1, 0.5, training=False) * 2

    x = random(2, 3, 4, 4)
    program = normalize(plain_trace(two, x))
    assert nodes(program, "dropout") == nodes(program, "feature_dropout") == []
    torch.testing.assert_close(program.module()(x), (x + 1) * 2)


def test_dropout_that_drops_stays():
    program = normalize(plain_trace(lambda x: F.dropout(x, 0.5, training=True) * 2, random(2, 3)))
    assert len(nodes(program, "dropout")) == 1


def test_dropout_that_is_the_output_keeps_its_name():
    x = random(2, 3)
    program = normalize(plain_trace(lambda x: F.dropout(x * 2, 0.5, training=False), x))
    torch.testing.assert_close(program.module()(x), x * 2)


def test_transposing_back_is_gone():
    def model(x):
        return x.transpose(1, 2).permute(0, 2, 1, 3).norm(dim=-1)

    program = normalize(plain_trace(model, random(2, 3, 4, 5)))
    assert nodes(program, "permute") + nodes(program, "transpose") == []
    torch.testing.assert_close(program.module()(random(2, 3, 4, 5)), model(random(2, 3, 4, 5)))


def test_transposing_something_else_stays():
    def model(x):
        return x.transpose(1, 2).transpose(2, 3).norm(dim=-1)

    program = normalize(plain_trace(model, random(2, 3, 4, 5)))
    assert len(nodes(program, "transpose")) == 2


def test_squeezing_what_is_not_1_is_left_out():
    class Squeezed(torch.nn.Module):
        def forward(self, x):
            return x.squeeze(1).squeeze(2) * 2

    program = traced(Squeezed(), [ModelInput("x", random(2, 4, 1), {0: "b", 1: "n"})])
    assert [shape(node) for node in nodes(program, "squeeze")] == [shape(nodes(program, "mul")[0])]
    torch.testing.assert_close(program.module()(random(3, 5, 1)), random(3, 5, 1).squeeze(2) * 2)


def test_cast_to_what_is_given_is_left_out():
    x = random(2, 3)
    program = normalize(plain_trace(lambda x: x.float() * x.double(), x))
    assert [node.args[1] for node in nodes(program, "to")] == [torch.float64]
    assert not nodes(program, "_assert_tensor_metadata")
    torch.testing.assert_close(program.module()(x), x * x.double())


def test_cast_that_is_an_output_stays():
    x = random(2, 3)
    program = normalize(plain_trace(lambda x: x.float(), x))
    torch.testing.assert_close(program.module()(x), x)


# Matrices of 0 and 1 that repeat entries, and others.


SPREAD_X = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
EACH = torch.eye(4).repeat_interleave(3, 1)  # [4, 12]

SPREAD: dict[str, Callable[[Tensor], Tensor]] = {
    "matmul": lambda x: x @ EACH,
    "mm": lambda x: x[0].mm(EACH),
    "linear": lambda x: F.linear(x, EACH.mT.contiguous()),
    "made_as_the_model_runs": lambda x: x @ torch.eye(4).repeat_interleave(2, 1),
    "kron": lambda x: x @ torch.kron(torch.eye(4), torch.ones(1, 5)),
}


@sampled(2)
@pytest.mark.parametrize("name", SPREAD)
def test_product_that_repeats_is_a_repetition(name: str):
    program = normalize(plain_trace(SPREAD[name], SPREAD_X))
    assert len(nodes(program, "repeat_interleave")) >= 1
    assert nodes(program, "matmul") + nodes(program, "mm") + nodes(program, "linear") == []
    assert torch.equal(program.module()(SPREAD_X), SPREAD[name](SPREAD_X))


IDENTITY: dict[str, Callable[[Tensor], Tensor]] = {
    "matmul": lambda x: x @ torch.eye(4) * 2,
    "linear": lambda x: F.linear(x, torch.eye(4)) * 2,
    "linear_with_a_bias_of_zeros": lambda x: F.linear(x, torch.eye(4), torch.zeros(4)) * 2,
}


@pytest.mark.parametrize("name", IDENTITY)
def test_product_with_the_identity_is_gone(name: str):
    """As the output projection of nn.MultiheadAttention that some replace by one of their own."""
    program = normalize(plain_trace(IDENTITY[name], SPREAD_X))
    assert nodes(program, "matmul") + nodes(program, "linear") == []
    assert torch.equal(program.module()(SPREAD_X), IDENTITY[name](SPREAD_X))


SPREAD_OTHER: dict[str, Callable[[Tensor], Tensor]] = {
    "repeated_as_a_whole": lambda x: x @ torch.eye(4).repeat(1, 3),
    "identity_that_is_the_output": lambda x: x @ torch.eye(4),
    "identity_with_a_bias": lambda x: F.linear(x, torch.eye(4), torch.ones(4)) * 2,
    "identity_but_for_an_entry": lambda x: x @ torch.eye(4).index_fill(1, torch.tensor(3), 0) * 2,
    "twice_as_large": lambda x: x @ (EACH * 2),
    "one_of_them_zero": lambda x: x @ (EACH * torch.tensor([1.0] * 11 + [0.0])),
    "entries_in_another_order": lambda x: x @ EACH.flip(0),
    "sums": lambda x: F.linear(x.repeat(1, 1, 3), EACH),
    "with_a_bias": lambda x: F.linear(x, EACH.mT.contiguous(), torch.ones(12)),
    "of_the_input": lambda x: x[0] @ (x[0].mT @ x[0]).sign().repeat(1, 2),
    "a_constant": lambda x: (torch.ones(2, 4) @ EACH).sum() + x,
}


@sampled(4)
@pytest.mark.parametrize("name", SPREAD_OTHER)
def test_anything_else_stays_a_product(name: str):
    program = plain_trace(SPREAD_OTHER[name], SPREAD_X)
    products = ("matmul", "mm", "linear")
    count = sum(len(nodes(program, product)) for product in products)
    program = normalize(program)
    assert sum(len(nodes(program, product)) for product in products) == count
    torch.testing.assert_close(program.module()(SPREAD_X), SPREAD_OTHER[name](SPREAD_X))


def test_what_nobody_reads_is_gone():
    program = normalize(plain_trace(lambda x: (x.exp(), x + 1)[1], torch.ones(2)))
    assert nodes(program, "exp") == []
