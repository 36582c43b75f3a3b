from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from moh_deploy.config.export_config import ExportConfig
from moh_deploy.errors import CheckpointError, ConfigError
from moh_deploy.frontend.inputs.example_inputs import example_inputs
from moh_deploy.frontend.inputs.program_inputs import (
    inputs_from_program,
    unnamed_dims,
    with_values,
)
from moh_deploy.frontend.limits import Relations
from moh_deploy.frontend.load.model import LoadedModel, ModelInput, example_sizes
from moh_deploy.frontend.load.pt2 import load_program
from moh_deploy.frontend.prove.original import run_original
from moh_deploy.frontend.trace import trace
from tests.nightly import sampled


class Decode(nn.Module):
    """Takes ids [batch, 1], a mask [batch, past + 1] and past values [batch, past, 4]."""

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, *past: torch.Tensor) -> torch.Tensor:
        new = torch.nn.functional.one_hot(ids, 4).to(past[0].dtype)
        joined = torch.cat([sum(past), new], dim=1)
        return (joined * mask.unsqueeze(-1)).sum(1)


EXAMPLE = (
    torch.tensor([[1], [3]]),
    torch.ones(2, 6, dtype=torch.bool),
    torch.randn(2, 5, 4),
    torch.randn(2, 5, 4),
)


def decode_program() -> torch.export.ExportedProgram:
    batch, past = torch.export.Dim("batch"), torch.export.Dim("past")
    kept = {0: batch, 1: past}
    shapes = ({0: batch}, {0: batch, 1: past + 1}, (kept, kept))
    return torch.export.export(Decode(), EXAMPLE, dynamic_shapes=shapes)


def inputs_of(
    program: torch.export.ExportedProgram, config: ExportConfig, **given: object
) -> tuple[ModelInput, ...]:
    return example_inputs(LoadedModel(None, program, "in_memory", None), config, **given)[1]


def reloaded(tmp_path: Path, program: torch.export.ExportedProgram) -> Any:
    torch.export.save(program, tmp_path / "m.pt2")
    return load_program(tmp_path / "m.pt2", trust_pickle=False)


def test_names_example_and_dynamic_axes_are_those_of_the_program(tmp_path: Path) -> None:
    inputs = inputs_from_program(reloaded(tmp_path, decode_program()))
    assert [(item.name, item.dims) for item in inputs] == [
        ("ids", {0: "batch"}),
        ("mask", {0: "batch", 1: "past_0_dim_1+1"}),
        ("past_0", {0: "batch", 1: "past_0_dim_1"}),
        ("past_1", {0: "batch", 1: "past_0_dim_1"}),
    ]
    for item, value in zip(inputs, EXAMPLE, strict=True):
        torch.testing.assert_close(item.value, value, rtol=0, atol=0)
    assert example_sizes(inputs) == {"batch": 2, "past_0_dim_1": 5}


def test_values_are_made_where_the_program_has_no_example(tmp_path: Path) -> None:
    program = decode_program()
    program._example_inputs = None
    inputs = inputs_from_program(reloaded(tmp_path, program))
    assert [tuple(item.value.shape) for item in inputs] == [tuple(v.shape) for v in EXAMPLE]
    assert [item.value.dtype for item in inputs] == [v.dtype for v in EXAMPLE]
    assert inputs[1].value.all()
    assert example_sizes(inputs) == {"batch": 2, "past_0_dim_1": 5}


def test_dimensions_of_two_first_axes_get_two_names() -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x.sum() + y

    a, b = torch.export.Dim("a"), torch.export.Dim("b")
    shapes = ({0: a}, {0: b})
    program = torch.export.export(Two(), (torch.ones(2), torch.ones(3)), dynamic_shapes=shapes)
    assert [item.dims for item in inputs_from_program(program)] == [{0: "batch"}, {0: "y_dim_0"}]


class Joined(nn.Module):
    def forward(self, x: torch.Tensor, past: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.cat([past, x], 1) * mask


class Flattened(nn.Module):
    def forward(self, x: torch.Tensor, flat: torch.Tensor) -> torch.Tensor:
        return x + flat.view(x.shape)


def any_sizes(model: nn.Module, *example: torch.Tensor) -> torch.export.ExportedProgram:
    dynamic = [dict.fromkeys(range(value.ndim), torch.export.Dim.AUTO) for value in example]
    return torch.export.export(model, example, dynamic_shapes=dynamic)


def test_sum_of_sizes_is_a_dimension_that_follows_from_others(tmp_path: Path) -> None:
    program = reloaded(tmp_path, any_sizes(Joined(), *(torch.ones(2, n) for n in (3, 5, 8))))
    inputs = inputs_from_program(program)
    assert [item.dims for item in inputs] == [
        {0: "batch", 1: "x_dim_1"},
        {0: "batch", 1: "past_dim_1"},
        {0: "batch", 1: "mask_dim_1"},
    ]
    sizes = {"batch": 2, "x_dim_1": 4, "past_dim_1": 9, "mask_dim_1": 1}
    assert Relations.of(program, inputs).complete(sizes) == {**sizes, "mask_dim_1": 13}


def test_product_of_sizes_is_refused() -> None:
    program = any_sizes(Flattened(), torch.ones(2, 3), torch.ones(6))
    with pytest.raises(CheckpointError, match=r"axis 0 of input 'flat' .* has size 's\d+\*s\d+'"):
        inputs_from_program(program)


def test_program_without_dynamic_axes_has_fixed_inputs() -> None:
    program = torch.export.export(Decode(), EXAMPLE)
    assert [item.dims for item in inputs_from_program(program)] == [{}, {}, {}, {}]


class Scaled(nn.Module):
    def forward(
        self, x: torch.Tensor, factor: int, mask: torch.Tensor | None = None, flip: bool = False
    ) -> torch.Tensor:
        scaled = x * factor if mask is None else x * mask
        return scaled.flip(0) if flip else scaled


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch's own
def test_constants_among_the_arguments_are_no_inputs(tmp_path: Path) -> None:
    program = torch.export.export(
        Scaled(), (torch.ones(2),), {"factor": 3, "mask": None, "flip": True}
    )
    model = LoadedModel(None, reloaded(tmp_path, program), "pt2", None)
    (x,) = inputs_from_program(model.program)
    assert x.name == "x"
    torch.testing.assert_close(run_original(model, [torch.ones(2)])[0], torch.full((2,), 3.0))
    traced = trace(model, [x])
    assert traced.graph_signature.user_inputs == ("x",)
    traced.run_decompositions()  # as torch.onnx does
    torch.testing.assert_close(traced.module()(torch.ones(2)), torch.full((2,), 3.0))


def test_number_that_stays_an_argument_is_refused() -> None:
    program = torch.export.export(
        Scaled(), (torch.ones(2), 3), dynamic_shapes=(None, torch.export.Dim.DYNAMIC)
    )
    with pytest.raises(CheckpointError, match="input 'factor' of the program is not a tensor"):
        inputs_from_program(program)


def test_other_values_take_the_dynamic_axes_of_the_program() -> None:
    described = inputs_from_program(decode_program())
    given = [
        ModelInput(f"arr_{index}", value.repeat(2, *[1] * (value.ndim - 1)))
        for index, value in enumerate(EXAMPLE)
    ]
    inputs = with_values(described, given)
    assert [item.name for item in inputs] == ["arr_0", "arr_1", "arr_2", "arr_3"]
    assert [item.dims for item in inputs] == [item.dims for item in described]
    assert example_sizes(inputs) == {"batch": 4, "past_0_dim_1": 5}


@sampled(2)
@pytest.mark.parametrize(
    ("index", "replacement", "message"),
    [
        (0, torch.ones(2, 1), r"'ids' is torch\.float32 .*is torch\.int64 \[batch, 1\]"),
        (0, torch.ones(2, 3, dtype=torch.int64), r"'ids' is torch\.int64 \[2, 3\]"),
        (2, torch.ones(2, 5), r"'past_0' is torch\.float32 \[2, 5\]"),
    ],
)
def test_values_that_do_not_fit_the_program_are_refused(
    index: int, replacement: torch.Tensor, message: str
) -> None:
    described = inputs_from_program(decode_program())
    given = [ModelInput(item.name, item.value) for item in described]
    given[index] = ModelInput(given[index].name, replacement)
    with pytest.raises(ConfigError, match=message):
        with_values(described, given)


def test_other_number_of_values_and_other_dynamic_axes_are_refused() -> None:
    described = inputs_from_program(decode_program())
    with pytest.raises(ConfigError, match=r"has 4 inputs \(ids, .*but 1 are given \(ids\)"):
        with_values(described, described[:1])
    given = [ModelInput(item.name, item.value) for item in described]
    given[2] = ModelInput("past_0", given[2].value, {2: "width"})
    with pytest.raises(ConfigError, match="axis 2 of input 'past_0' is fixed in the program"):
        with_values(described, given)


def test_user_names_the_dimensions_of_a_program() -> None:
    options = ["past_0:1=past", "ids:0=b"]
    inputs = inputs_of(decode_program(), ExportConfig(), dynamic=options)
    assert [item.dims for item in inputs] == [
        {0: "b"},
        {0: "b", 1: "past+1"},
        {0: "b", 1: "past"},
        {0: "b", 1: "past"},
    ]


def test_dimensions_that_nobody_named_are_told() -> None:
    program = decode_program()
    assert unnamed_dims(program, inputs_from_program(program)) == {"past_0_dim_1": "past_0:1"}
    named = inputs_of(program, ExportConfig(), dynamic=["past_0:1=past"])
    assert unnamed_dims(program, named) == {}


def test_inputs_that_are_called_as_the_programs_are_in_any_order() -> None:
    given = {
        "past": (torch.ones(3, 7, 4), torch.zeros(3, 7, 4)),
        "mask": torch.ones(3, 8, dtype=torch.bool),
        "ids": torch.ones(3, 1, dtype=torch.int64),
    }
    inputs = inputs_of(decode_program(), ExportConfig(), npz=given)
    assert [item.name for item in inputs] == ["ids", "mask", "past.0", "past.1"]
    assert [int(item.value.max()) for item in inputs] == [1, 1, 1, 0]


class Nested(nn.Module):
    def forward(
        self,
        x: torch.Tensor,
        past: list[dict[str, torch.Tensor]],
        *,
        Extra: dict[str, torch.Tensor],
    ) -> torch.Tensor:
        return x + past[1]["key.of"] + Extra["it"]


def test_nested_inputs_are_called_by_their_path(tmp_path: Path) -> None:
    x, y = torch.export.Dim("x"), torch.export.Dim("y")
    one = torch.ones(3, 2)
    program = torch.export.export(
        Nested(),
        (torch.ones(3, 1), [{}, {"key.of": one}]),
        {"Extra": {"it": torch.ones(1, 2)}},
        dynamic_shapes={
            "x": {0: x},
            "past": [{}, {"key.of": {0: x, 1: y}}],
            "Extra": {"it": {1: y}},
        },
    )
    assert program.graph_signature.user_inputs[1] == "past_1_key_of"
    loaded = reloaded(tmp_path, program)
    inputs = inputs_from_program(loaded)
    assert [item.name for item in inputs] == ["x", "past.1.key.of", "Extra.it"]
    assert inputs[1].dims == {0: "batch", 1: "past_1_key_of_dim_1"}
    for names in ("x", "past.1.key.of", "Extra.it"), ("x", "past_1_key_of", "Extra_it"):
        given = dict(zip(names, (item.value for item in inputs), strict=True))
        backwards = dict(reversed(given.items()))
        found = inputs_of(loaded, ExportConfig(), npz=backwards)
        assert tuple(item.name for item in found) == names


def test_inputs_that_would_be_called_the_same_keep_the_names_of_torch() -> None:
    class Two(nn.Module):
        def forward(self, past: dict[str, torch.Tensor], **more: torch.Tensor) -> torch.Tensor:
            return past["x"] + more["past.x"]

    program = torch.export.export(Two(), ({"x": torch.ones(2)},), {"past.x": torch.ones(2)})
    names = program.graph_signature.user_inputs
    assert tuple(item.name for item in inputs_from_program(program)) == names
    assert len(set(names)) == 2


def test_user_gives_values_to_a_program() -> None:
    specs = ["i:[b=3,1]:int64", "m:[b=3,p+1=8]:bool", "k:[b=3,p=7,4]", "v:[b=3,p=7,4]"]
    inputs = inputs_of(decode_program(), ExportConfig(), specs=specs)
    assert [item.name for item in inputs] == ["i", "m", "k", "v"]
    assert example_sizes(inputs) == {"b": 3, "p": 7}


@sampled(2)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["mask:1=past"],
            r"axis 1 of input 'mask' is 'past_0_dim_1\+1' in the program, not 'past'",
        ),
        (["past_0:1=a", "past_1:1=b"], "axis 1 of input 'past_1' is 'a' in the program, not 'b'"),
        (["past_0:1=n", "ids:0=n"], "one name is given to dimensions that the program keeps apart"),
        (["past_0:2=width"], "axis 2 of input 'past_0' is fixed in the program"),
    ],
)
def test_dimensions_that_contradict_the_program_are_refused(
    options: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        inputs_of(decode_program(), ExportConfig(), dynamic=options)
