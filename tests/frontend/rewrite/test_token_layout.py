"""Each way of writing a convolution of tokens becomes one operator; what is none stays."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from moh_deploy.frontend.fx.graph import argument, op, rank, tensor_inputs
from moh_deploy.frontend.normalize import normalize
from moh_deploy.frontend.prove.record import record
from moh_deploy.frontend.rewrite import commit
from moh_deploy.frontend.rewrite.rewritten import Swap
from moh_deploy.frontend.rewrite.tokens_first import insert_token_layout
from tests.frontend.traced import nodes
from tests.nightly import sampled

B, H, W, C = 2, 4, 6, 8
TOKENS = torch.randn(B, H * W, C, generator=torch.Generator().manual_seed(0))

Form = Callable[["Block", Tensor], Tensor]


class Block(nn.Module):
    """One way of writing a model with convolutions of tokens [B, H*W, C]."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.fc1, self.fc2 = nn.Linear(C, 2 * C), nn.Linear(C, C)
            self.conv = nn.Conv2d(C, C, 3, padding=1, groups=C)
            self.bare = nn.Conv2d(C, C, 3, padding="same", groups=C, bias=False)
            self.oblong = nn.Conv2d(C, C, (1, 5), padding=(0, 2), groups=C)
            self.reflect = nn.Conv2d(C, C, 3, padding=1, groups=C, padding_mode="reflect")
            self.sr, self.norm = nn.Conv2d(C, 5, 1), nn.LayerNorm(C)
            self.dense = nn.Conv2d(C, C, 3, padding=1)
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        return self.form(self, x)


def traced(form: Form, x: Tensor = TOKENS) -> tuple[nn.Module, ExportedProgram]:
    model = Block(form).eval()
    with torch.no_grad():
        exported = torch.export.export(model, (x,), dynamic_shapes=({0: Dim("batch", min=2)},))
    return model, normalize(exported)


def rewritten(form: Form, x: Tensor = TOKENS) -> tuple[ExportedProgram, list[Swap]]:
    """The committed program, after its result was compared with the model's at two batch sizes."""
    model, program = traced(form, x)
    swaps = insert_token_layout(program)
    assert record(program, [], [x], swaps).disagreements == [None] * len(swaps)
    committed = commit(program, [], swaps)
    for batch in (x, torch.cat([x, -x, x])):
        torch.testing.assert_close(committed.module()(batch)[0], model(batch), atol=1e-5, rtol=1e-5)
    return committed, swaps


def moves(program: ExportedProgram) -> list[str]:
    """Operators that work on images, or make one."""
    names = ("transpose", "permute", "conv2d", "contiguous", "adaptive_avg_pool2d", "avg_pool2d")
    return [op(node) for node in program.graph.nodes if op(node) in names]


def image(x: Tensor) -> Tensor:
    return x.transpose(1, 2).reshape(x.shape[0], -1, H, W)


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


CONVOLUTIONS: dict[str, tuple[tuple[str, bool], Form]] = {
    "transpose_view": (("none", False), lambda m, x: tokens(m.conv(image(x)))),
    "contiguous": (
        ("none", False),
        lambda m, x: tokens(m.conv(x.mT.contiguous().view(-1, C, H, W).contiguous())),
    ),
    "rearrange": (
        ("none", False),
        lambda m, x: (
            m.conv(x.view(-1, H, W, C).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).flatten(1, 2)
        ),
    ),
    "channels_last": (
        ("none", False),
        lambda m, x: tokens(
            m.conv(image(x).contiguous(memory_format=torch.channels_last)).contiguous()
        ),
    ),
    "movedim_unflatten": (
        ("none", False),
        lambda m, x: m.conv(x.movedim(-1, 1).unflatten(2, (H, W))).flatten(-2).movedim(1, -1),
    ),
    "reshape_of_a_permutation": (
        ("none", False),
        lambda m, x: m.conv(image(x)).permute(0, 2, 3, 1).reshape(x.shape[0], H * W, C),
    ),
    "image_of_rank_4": (
        ("none", False),
        lambda m, x: m.norm(
            m.conv(m.norm(x.unflatten(1, (H, W))).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        ),
    ),
    "functional": (
        ("none", False),
        lambda m, x: tokens(F.conv2d(image(x), m.conv.weight, m.conv.bias, 1, 1, 1, C)),
    ),
    "no_bias_same": (("none", False), lambda m, x: tokens(m.bare(image(x)))),
    "oblong": (("none", False), lambda m, x: tokens(m.oblong(image(x)))),
    "sizes_of_the_image": (
        ("none", False),
        lambda m, x: (y := m.conv(image(x))).reshape(y.shape[0], y.shape[1], -1).permute(0, 2, 1),
    ),
    "residual": (("none", False), lambda m, x: x + tokens(m.conv(image(x)))),
    "gelu_on_tokens": (("gelu", False), lambda m, x: F.gelu(tokens(m.conv(image(x))))),
    "gelu_on_image": (("gelu", False), lambda m, x: tokens(F.gelu(m.conv(image(x))))),
    "gelu_between_views": (
        ("gelu", False),
        lambda m, x: F.gelu(m.conv(image(x)).flatten(2)).transpose(1, 2).contiguous(),
    ),
    "gelu_and_dropout": (
        ("gelu", False),
        lambda m, x: m.fc2(F.dropout(F.gelu(tokens(m.conv(image(x)))), 0.5, m.training)),
    ),
    "gated_chunk": (
        ("gelu", True),
        lambda m, x: (h := m.fc1(x).chunk(2, -1)) and F.gelu(tokens(m.conv(image(h[0])))) * h[1],
    ),
    "gated_split": (
        ("none", True),
        lambda m, x: (h := m.fc1(x).split(C, 2)) and h[1] * tokens(m.conv(image(h[0]))),
    ),
    "gated_slices": (
        ("gelu", True),
        lambda m, x: F.gelu(tokens(m.conv(image((h := m.fc1(x))[..., :C])))) * h[..., C:],
    ),
    "gated_on_image": (
        ("gelu", True),
        lambda m, x: (
            (h := m.fc1(x).chunk(2, -1)) and tokens(F.gelu(m.conv(image(h[0]))) * image(h[1]))
        ),
    ),
    "gated_chunk_of_image": (
        ("gelu", True),
        lambda m, x: (h := image(m.fc1(x)).chunk(2, 1)) and tokens(F.gelu(m.conv(h[0])) * h[1]),
    ),
}


@sampled(10)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_in_any_spelling_becomes_one_operator(name: str):
    (activation, gated), form = CONVOLUTIONS[name]
    program, swaps = rewritten(form)
    (node,) = nodes(program, "token_conv")
    assert len(swaps) == 1
    assert node.args[4:] == (C, H, W, activation, gated)
    assert moves(program) == []
    assert nodes(program, "gelu") == nodes(program, "chunk") == nodes(program, "mul") == []


@sampled(4)
@pytest.mark.parametrize(
    "form",
    [
        lambda m, x: tokens(F.gelu(m.conv(image(x)), approximate="tanh")),
        lambda m, x: F.relu(tokens(m.conv(image(x)))),
        lambda m, x: F.gelu(tokens(m.conv(image(x)))) * x,
        lambda m, x: (h := m.fc1(x).chunk(2, -1)) and tokens(m.conv(image(h[1]))) * h[0],
        lambda m, x: (h := m.fc1(x).chunk(2, -1)) and tokens(m.conv(image(h[0]))) * h[0],
        lambda m, x: (
            (h := m.fc1(x).chunk(2, -1)) and tokens(m.conv(image(h[0]))) * m.fc1(-x).chunk(2, -1)[1]
        ),
        lambda m, x: F.gelu(y := tokens(m.conv(image(x)))) + y,
    ],
    ids=["tanh", "relu", "other_gate", "halves_swapped", "own_half", "half_of_another", "two_read"],
)
def test_what_follows_and_is_something_else_stays_behind_the_convolution(form: Form):
    program, _ = rewritten(form)
    (node,) = nodes(program, "token_conv")
    assert node.args[7:] == ("none" if node.args[7] == "none" else "gelu", False)
    assert "conv2d" not in moves(program)


BIASED: dict[str, tuple[bool, Form]] = {
    "alone": (True, lambda m, x: tokens(m.conv(image(m.fc2(x))))),
    "gated": (True, CONVOLUTIONS["gated_chunk"][1]),
    "gated_slices": (True, CONVOLUTIONS["gated_slices"][1]),
    "gated_chunk_of_image": (True, CONVOLUTIONS["gated_chunk_of_image"][1]),
    "sizes_read": (
        True,
        lambda m, x: (
            (y := m.fc2(x)) is not None
            and tokens(m.conv(y.transpose(1, 2).reshape(y.shape[0], y.shape[2], H, W)))
        ),
    ),
    "two_readers": (False, lambda m, x: (y := m.fc2(x)) + tokens(m.conv(image(y)))),
    "other_gates": (
        False,
        lambda m, x: (h := m.fc1(x).chunk(2, -1)) and F.relu(tokens(m.conv(image(h[0])))) * h[1],
    ),
    "no_product": (False, lambda m, x: tokens(m.conv(image(x + m.fc2.bias)))),
    "something_between": (False, lambda m, x: tokens(m.conv(image(F.relu(m.fc2(x)))))),
    "pointwise": (False, lambda m, x: tokens(m.sr(image(m.fc2(x))))),
}


@sampled(5)
@pytest.mark.parametrize("name", BIASED)
def test_bias_of_the_product_before_is_added_by_the_convolution(name: str):
    joined, form = BIASED[name]
    program, _ = rewritten(form)
    biases = [node.args[3] for node in nodes(program, "token_conv")]
    assert any(bias is not None for bias in biases) == joined
    if joined:
        (linear,) = nodes(program, "linear")
        assert len(linear.args) == 2


def test_tanh_gelu_is_not_taken_for_gelu():
    program, _ = rewritten(lambda m, x: tokens(F.gelu(m.conv(image(x)), approximate="tanh")))
    assert nodes(program, "token_conv")[0].args[7] == "none"
    assert len(nodes(program, "gelu")) == 1


def _conv(x: Tensor, m: Block, **options: int) -> Tensor:
    return tokens(F.conv2d(image(x), m.conv.weight, m.conv.bias, groups=C, **options))


@sampled(8)
@pytest.mark.parametrize(
    "form",
    [
        lambda m, x: _conv(x, m, padding=1, stride=2),
        lambda m, x: _conv(x, m, padding=2, dilation=2),
        lambda m, x: _conv(x, m, padding=0),
        lambda m, x: _conv(x, m, padding=2),
        lambda m, x: tokens(m.dense(image(x))),
        lambda m, x: tokens(
            F.conv2d(image(x), m.conv.weight.repeat(2, 1, 1, 1), groups=C, padding=1)
        ),
        lambda m, x: tokens(F.conv2d(image(x), m.dense.weight[:, :4], groups=2, padding=1)),
        lambda m, x: tokens(F.conv2d(image(x), m.conv.weight[:, :, :2, :2], groups=C, padding=1)),
        lambda m, x: tokens(m.reflect(image(x))),
        lambda m, x: tokens(F.conv_transpose2d(image(x), m.conv.weight, groups=C, padding=1)),
        lambda m, x: tokens(m.conv(x.transpose(1, 2).reshape(-1, C, W, H).transpose(2, 3))),
        lambda m, x: tokens(m.conv(image(x)).transpose(2, 3)),
        lambda m, x: tokens(m.conv(x.reshape(-1, C, H, W))),
        lambda m, x: m.conv(image(x)),
        lambda m, x: tokens(y := m.conv(image(x))) + y.amax((2, 3)).unsqueeze(1),
        lambda m, x: tokens(m.conv(image(x).double().float())),
        lambda m, x: tokens(m.conv(F.relu(image(x)))),
        lambda m, x: tokens(F.avg_pool2d(image(x), 3, 1, 1)),
        lambda m, x: tokens(F.avg_pool2d(image(x), 2, ceil_mode=True, divisor_override=3)),
        lambda m, x: tokens(F.adaptive_avg_pool2d(image(x), (3, 3))),
        lambda m, x: tokens(F.max_pool2d(image(x), 2)),
    ],
    ids=[
        "stride",
        "dilation",
        "no_padding",
        "too_much_padding",
        "one_group",
        "two_outputs_a_channel",
        "two_groups",
        "even_kernel",
        "reflect",
        "transposed",
        "columns_before_rows",
        "transposed_result",
        "not_transposed",
        "image_is_the_result",
        "image_has_another_reader",
        "cast",
        "image_is_computed",
        "overlapping_blocks",
        "other_divisor",
        "uneven_blocks",
        "maximum",
    ],
)
def test_what_only_looks_like_it_stays(form: Form):
    _, swaps = rewritten(form)
    assert swaps == []


def test_image_of_unknown_size_stays():
    def form(m: Block, x: Tensor) -> Tensor:
        rows = x.shape[1] // W
        return tokens(m.conv(x.transpose(1, 2).reshape(x.shape[0], C, rows, W)))

    model = Block(form).eval()
    exported = torch.export.export(
        model, (TOKENS,), dynamic_shapes=({1: 6 * Dim("rows", min=2, max=64)},)
    )
    assert insert_token_layout(normalize(exported)) == []


CHAINS: dict[str, tuple[list[str], Form]] = {
    "pointwise": (["linear"], lambda m, x: tokens(m.sr(image(x)))),
    "pooled_tokens": (
        ["linear", "gelu", "mean", "mean"],
        lambda m, x: tokens(nn.AdaptiveAvgPool2d((2, None))(F.gelu(m.sr(image(x))))),
    ),
    "average_pool": (["mean", "mean"], lambda m, x: tokens(F.avg_pool2d(image(x), (2, 3)))),
    "separable": (
        ["token_conv", "linear"],
        lambda m, x: tokens(m.sr(F.gelu(m.conv(image(x))))),
    ),
    "two_convolutions": (
        ["token_conv", "token_conv"],
        lambda m, x: tokens(m.bare(F.gelu(m.conv(image(x))))),
    ),
    "two_blocks": (
        ["token_conv", "linear", "token_conv"],
        lambda m, x: F.gelu(tokens(m.bare(image(m.fc2(tokens(m.conv(image(x)))))))),
    ),
    "activations": (
        ["linear", "silu", "hardswish"],
        lambda m, x: tokens(F.hardswish(F.silu(m.sr(image(x))))),
    ),
}


@sampled(3)
@pytest.mark.parametrize("name", CHAINS)
def test_chain_of_operators_on_an_image_is_computed_on_tokens(name: str):
    expected, form = CHAINS[name]
    program, _ = rewritten(form)
    computing = ("token_conv", "linear", "gelu", "silu", "hardswish", "mean")
    assert [op(node) for node in program.graph.nodes if op(node) in computing] == expected
    assert moves(program) == []


def test_mean_of_blocks_reduces_the_middle_of_three_dimensions():
    """Runtimes have fast code for that, and none for the six dimensions of rows of blocks."""
    program, _ = rewritten(CHAINS["average_pool"][1])
    means = nodes(program, "mean")
    assert [argument(node, "dim") for node in means] == [[1], [1]]
    assert [rank(tensor_inputs(node)[0]) for node in means] == [3, 3]


def test_inserting_alone_changes_no_output():
    model, program = traced(CONVOLUTIONS["gated_chunk"][1])
    insert_token_layout(program)
    torch.testing.assert_close(program.module()(TOKENS), model(TOKENS))


def test_operator_that_differs_is_noticed():
    _, program = traced(CONVOLUTIONS["transpose_view"][1])
    swaps = insert_token_layout(program)
    (node,) = nodes(program, "token_conv")
    node.args = (*node.args[:5], W, H, *node.args[7:])
    program.graph_module.recompile()
    (disagreement,) = record(program, [], [TOKENS], swaps).disagreements
    assert "the token layout of model differs from the original by" in disagreement.words
    assert f"by {disagreement.max_abs_error:.3g} " in disagreement.words
