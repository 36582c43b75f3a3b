from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from moh_deploy.errors import ExportError
from moh_deploy.frontend.fx.graph import add_constant
from moh_deploy.frontend.inputs.arguments import bind
from moh_deploy.frontend.load.model import LoadedModel, ModelInput
from moh_deploy.frontend.trace import _explain, _place, trace
from tests.frontend.traced import loaded, nodes, plain_trace
from tests.nightly import nightly


class Model(nn.Module):
    """Calls a function; for the ways in which functions use sizes."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function
        self.linear = nn.Linear(4, 4)
        self.positions = nn.Parameter(torch.randn(64, 4))

    def forward(self, x: Tensor, y: Tensor | None = None) -> object:
        return self.function(self, x) if y is None else self.function(self, x, y)


def x(dims: dict[int, str], *shape: int, name: str = "x") -> ModelInput:
    return ModelInput(name, torch.randn(*(shape or (2, 5, 4))), dims)


BATCH_SEQ = x({0: "batch", 1: "seq"})


def assert_takes_another_size(
    function: Callable[..., Tensor], given: ModelInput, *shape: int
) -> None:
    """Check that the traced program computes what the function does."""
    model = Model(function).eval()
    program = trace(loaded(model), [given])
    other = torch.randn(*shape)
    torch.testing.assert_close(program.module()(other), model(other))


@pytest.mark.parametrize("shape", [(2, 5, 4), (3, 9, 4), (1, 1, 4)])
def test_declared_dimensions_take_any_size(shape: tuple[int, ...]):
    assert_takes_another_size(lambda m, x: m.linear(x).softmax(1), BATCH_SEQ, *shape)


def test_undeclared_dimension_is_fixed():
    program = trace(loaded(Model(lambda m, x: m.linear(x))), [x({0: "batch"})])
    with pytest.raises(AssertionError, match=r"x\.size\(\)\[1\] == 5"):
        program.module()(torch.randn(2, 6, 4))


def test_table_of_positions_bounds_a_dimension_but_does_not_fix_it():
    function = lambda m, x: x + m.positions[: x.shape[1]]  # noqa: E731
    assert_takes_another_size(function, BATCH_SEQ, 3, 64, 4)
    program = trace(loaded(Model(function)), [BATCH_SEQ])
    assert 64 in [bounds.upper for bounds in program.range_constraints.values()]


def test_derived_dimension_is_kept():
    model = Model(lambda m, x, y: torch.cat([x, y], 1))
    inputs = [x({1: "past"}), x({1: "past+1"}, 2, 6, 4, name="y")]
    program = trace(loaded(model), inputs)
    assert program.module()(torch.ones(2, 3, 4), torch.ones(2, 4, 4)).shape == (2, 7, 4)
    with pytest.raises((RuntimeError, AssertionError)):
        program.module()(torch.ones(2, 3, 4), torch.ones(2, 3, 4))


def test_multiple_of_a_dimension_is_kept():
    model = Model(lambda m, x: x.unflatten(1, (-1, 2)).sum(2))
    program = trace(loaded(model), [x({1: "2*half"}, 2, 6, 4)])
    assert program.module()(torch.ones(2, 10, 4)).shape == (2, 5, 4)


def test_varargs_are_traced():
    class Cached(nn.Module):
        def forward(self, x, *past):
            return torch.cat([*past, x], dim=1)

    inputs = [x({}), x({1: "past"}, name="a"), x({1: "past"}, name="b")]
    program = trace(loaded(Cached()), inputs)
    ones = torch.ones(2, 7, 4)
    assert program.module()(ones[:, :5], ones, ones).shape == (2, 19, 4)


def test_optional_arguments_may_be_left_out():
    program = trace(loaded(Model(lambda m, x: m.linear(x))), [BATCH_SEQ])
    assert len(program.graph_signature.user_inputs) == 1


def test_program_of_a_file_is_not_traced_again():
    program = plain_trace(nn.Linear(4, 4), torch.zeros(2, 4))
    copied = trace(LoadedModel(None, program, "pt2", None), [x({}, 2, 4)])
    assert [node.name for node in copied.graph.nodes] == [node.name for node in program.graph.nodes]
    assert copied.state_dict is program.state_dict


def test_program_of_a_file_stays_as_it_is_when_what_is_traced_is_changed():
    module = Model(lambda m, x: m.linear(x).sin() + torch.ones(4))
    model = LoadedModel(None, plain_trace(module, torch.zeros(2, 4)), "pt2", None)
    given = torch.randn(2, 4)
    changed = trace(model, [x({}, 2, 4)])
    (sine,) = nodes(changed, "sin")
    sine.target = torch.ops.aten.cos.default
    changed.graph_module.recompile()
    add_constant(changed, "more", torch.ones(1))
    assert "more" not in model.program.constants
    torch.testing.assert_close(model.callable()(given), module(given))
    torch.testing.assert_close(changed.module()(given), module.linear(given).cos() + 1)


# A dimension that the model fixes is named, with the place.


def reshaped_to_the_example(m, x):
    return x.reshape(2, -1)


def added_to_a_constant(m, x):
    return x + torch.ones(5, 4)


def compared_with_a_number(m, x):
    return x if x.shape[1] == 5 else x * 2


@pytest.mark.parametrize(
    ("function", "dimension", "size"),
    [
        (reshaped_to_the_example, "batch", 2),
        (added_to_a_constant, "seq", 5),
        (compared_with_a_number, "seq", 5),
    ],
)
def test_fixed_dimension_is_named(function, dimension: str, size: int):
    axis = {"batch": 0, "seq": 1}[dimension]
    with pytest.raises(ExportError) as caught:
        trace(loaded(Model(function)), [BATCH_SEQ])
    message = f"dimension '{dimension}' (axis {axis} of input 'x')"
    assert message in caught.value.message
    assert str(size) in caught.value.message.partition(message)[2]


def test_take_along_dim_fixes_no_size():
    def best(m, x):
        chosen = torch.argsort(-x, dim=-1)[..., :2]
        return torch.take_along_dim(x, chosen, dim=-1) + x.take_along_dim(chosen, 2)

    assert_takes_another_size(best, BATCH_SEQ, 3, 9, 4)


def test_number_of_pieces_fixes_no_size():
    """Torch once advised to fix the size; what it asserts is that there are two pieces."""

    def split(m, x):
        return torch.cat(torch.cat([x, x]).split(x.shape[0]), 1)

    assert_takes_another_size(split, x({0: "batch", 1: "n"}), 3, 7, 4)


@nightly
def test_strided_convolution_beside_a_strided_mask_takes_any_size():
    """Torch advises sizes of 4*n-1, which are those whose guards it can write down."""

    class Subsampled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Conv1d(4, 4, 3, 2), nn.Conv1d(4, 4, 3, 2))

        def forward(self, x, y):
            return self.layers(x).masked_fill(y[:, :, :-2:2][:, :, :-2:2] > 0, 0.0)

    model = Subsampled().eval()
    inputs = [x({2: "n"}, 2, 4, 39), x({2: "n"}, 2, 1, 39, name="y")]
    program = trace(loaded(model), inputs).module()
    for n in (40, 41, 50, 11):
        given = torch.randn(2, 4, n), torch.randn(2, 1, n)
        torch.testing.assert_close(program(*given), model(*given))


def test_offset_below_zero_is_traced():
    model = Model(lambda m, x: x[:, ::4] * 2)
    program = trace(loaded(model), [x({1: "4*t-3"}, 2, 9, 4)])
    assert program.module()(torch.ones(2, 13, 4)).shape == (2, 4, 4)


def test_sum_of_two_dimensions_that_is_fixed_is_told_with_its_place():
    model = Model(lambda m, x, y: torch.cat([x, y], 1) + torch.ones(9, 4))
    inputs = [x({1: "past"}), x({1: "future"}, 2, 4, 4, name="y")]
    told = (
        r"'(past|future)' must be 9 - (past|future), at .*test_trace\.py:\d+ in <lambda>: while it"
    )
    with pytest.raises(ExportError, match=told):
        trace(loaded(model), inputs)


def test_python_branch_on_a_range_of_sizes_narrows_the_range():
    """Tracing follows one side of the branch: the sizes of the other are not promised."""
    model = Model(lambda m, x: x if x.shape[1] > 4 else x * 2)
    program = trace(loaded(model), [BATCH_SEQ])
    assert 5 in [bounds.lower for bounds in program.range_constraints.values()]


def test_dimensions_that_must_be_equal_are_refused():
    def adds(m, x, y):
        return x + y

    inputs = [x({1: "left"}), x({1: "right"}, name="y")]
    line = adds.__code__.co_firstlineno + 1
    told = rf"'left' and 'right' .* to be equal, at .*test_trace\.py:{line} in adds\."
    with pytest.raises(ExportError, match=told):
        trace(loaded(Model(adds)), inputs)


def test_same_dimension_twice_is_fine():
    model = Model(lambda m, x, y: x + y)
    program = trace(loaded(model), [x({1: "seq"}), x({1: "seq"}, name="y")])
    ones = torch.ones(2, 8, 4)
    assert torch.equal(program.module()(ones, ones), ones * 2)


def branches(m, x):
    return x if x.sum() > 0 else -x


def counts(m, x):
    return x * int(x.sum())


def cuts_what_it_chose(m, x):
    chosen = x[x > 0]
    return chosen[: int(chosen.shape[0] * 0.5)]


@pytest.mark.parametrize(
    ("function", "line"),
    [
        (branches, 1),
        (counts, 1),
        (cuts_what_it_chose, 2),  # torch's text has no line of this kind
    ],
)
def test_use_of_a_value_is_refused_with_its_line(
    capfd: pytest.CaptureFixture[str], function, line: int
):
    line += function.__code__.co_firstlineno
    with pytest.raises(ExportError, match=rf"reads a value .*test_trace\.py:{line} in") as caught:
        trace(loaded(Model(function)), [BATCH_SEQ])
    assert "torch.where" in str(caught.value.hint)
    assert capfd.readouterr() == ("", "")  # torch prints the graph that it has, which may be long
    assert "def forward" in caught.value.__cause__.partial_fx_graph  # of export --verbose


def test_line_of_a_model_in_an_installed_package_is_told_with_its_caller():
    torchs = ("/lib/python3/site-packages/vit/model.py", 7, "attend"), ("/home/net.py", 3, "run")
    assert _place(torchs) == f", at {torchs[0][0]}:7 in attend, called at /home/net.py:3 in run"
    assert _place(torchs[1:]) == ", at /home/net.py:3 in run"
    assert _place(()) == ""


def test_error_in_the_model_is_no_matter_of_its_inputs():
    """Whose message has the word as well."""

    def function(m, x):
        return x * int(None)

    with pytest.raises(
        ExportError, match=r"cannot trace the model: TypeError: int\(\) arg.*\.py:\d"
    ):
        trace(loaded(Model(function)), [BATCH_SEQ])


@pytest.mark.parametrize("count", [0, 3])
def test_wrong_number_of_inputs_is_refused(count: int):
    with pytest.raises(ExportError, match="argument"):
        trace(loaded(Model(lambda m, x: x)), [BATCH_SEQ] * count)


def test_error_of_the_model_itself_is_told():
    def fails(m, x):
        raise NotImplementedError("only for images")

    with pytest.raises(ExportError, match="only for images"):
        trace(loaded(Model(fails)), [BATCH_SEQ])


class AddsATableOfEight(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(1, 8, 4))

    def forward(self, x):
        doubled = x * 2
        return doubled + self.table


def test_line_of_code_that_fixes_a_dimension_is_named():
    x = ModelInput("x", torch.zeros(2, 8, 4), {0: "batch", 1: "seq"})
    with pytest.raises(ExportError, match=r"'seq' .* to 8, at .*test_trace\.py:\d+ in forward"):
        trace(loaded(AddsATableOfEight()), [x])
    with pytest.raises(ExportError, match="fixes dimension 'seq'") as caught:
        trace(loaded(Recurrent()), [x])
    assert str(caught.value.hint).startswith("PyTorch traces LSTM 'steps' step by step")
    trace(loaded(Recurrent()), [replace(x, dims={0: "batch"})])


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.LSTM(4, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.steps(x)[0]


def test_dimension_that_must_be_a_multiple_is_told_so():
    advice = RuntimeError("Constraints violated (h)!\nSuggested fixes:\n  h = 8*_h\n")
    error = _explain(advice)
    assert "'h' must be 8*h for some whole number" in error.message
    assert "'8*h'" in str(error.hint)


# What a model is called with, and what it returns.


def test_inputs_are_called_as_they_are_in_the_program():
    first, second = x({0: "batch"}, 2, 4, name="past.0"), x({0: "batch"}, 2, 4, name="past.1")
    program = trace(loaded(Model(lambda m, a, b: a - b)), [first, second])
    assert list(program.graph_signature.user_inputs) == ["past_0", "past_1"]
    result = program.module()(second.value[:1], first.value[:1])
    torch.testing.assert_close(result, second.value[:1] - first.value[:1])


class TakesAnything(nn.Module):
    def forward(self, query: Tensor, **others: Tensor) -> Tensor:
        return query + others["memory"]


def test_input_that_is_lost_in_keywords_is_named():
    inputs = [x({}, 2, 4, name=name) for name in ("query", "memory", "maks")]
    bound = bind(TakesAnything().forward, {item.name: item for item in inputs})
    model = replace(loaded(TakesAnything()), call=bound.call, unknown=bound.unknown)
    with pytest.raises(ExportError, match="does not read the input 'maks'"):
        trace(model, bound.inputs)
    without = bind(TakesAnything().forward, {item.name: item for item in inputs[:2]})
    trace(replace(model, call=without.call, unknown=without.unknown), without.inputs)


@dataclass
class Answer:
    logits: Tensor


class Closed:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


def test_output_that_torch_does_not_open_is_named():
    with pytest.raises(ExportError, match="the model returns a Closed") as caught:
        trace(loaded(Model(lambda m, x: Closed(x))), [BATCH_SEQ])
    assert "torch.utils._pytree.register_pytree_node(Closed" in caught.value.hint


def test_dataclass_that_nobody_registered_is_returned_as_a_dict():
    program = trace(loaded(Model(lambda m, x: Answer(x + 1))), [BATCH_SEQ])
    assert program.call_spec.out_spec.context == ["logits"]
    torch.testing.assert_close(program.module()(BATCH_SEQ.value), {"logits": BATCH_SEQ.value + 1})
