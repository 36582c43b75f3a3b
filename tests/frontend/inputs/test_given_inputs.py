import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from moh_deploy.config.dims import DimExpr
from moh_deploy.config.export_config import ExportConfig, load_config
from moh_deploy.errors import ConfigError
from moh_deploy.frontend.inputs.arguments import BoundInputs, bind, flattened
from moh_deploy.frontend.inputs.given_inputs import (
    ExampleSpec,
    add_dynamic_axes,
    given_values,
    parse_constants,
    parse_input_options,
    specs_from_config,
    with_dynamic_axes,
)
from moh_deploy.frontend.load.model import ModelInput, example_sizes
from moh_deploy.package import CallArgument

NO_CONFIG = ExportConfig()


def build_inputs(config: ExportConfig, npz=None, specs=(), dynamic=()) -> tuple[ModelInput, ...]:
    given = flattened(given_values(config, npz, specs))
    inputs = with_dynamic_axes(config, given, npz, dynamic)
    example_sizes(inputs)
    return inputs


def build_call(
    forward: Callable[..., object], config: ExportConfig, npz=None, specs=(), dynamic=()
) -> BoundInputs:
    bound = bind(forward, given_values(config, npz, specs))
    return replace(bound, inputs=with_dynamic_axes(config, bound.inputs, npz, dynamic))


def npz(tmp_path: Path, *arrays: Any, **named: Any) -> Path:
    path = tmp_path / "inputs.npz"
    np.savez(path, *arrays, **named)
    return path


def configured(*inputs: str, dims: str) -> ExportConfig:
    return load_config(None, [f"inputs=[{', '.join(inputs)}]", f"dims={dims}"])


def test_members_of_a_file_are_the_arguments_in_file_order(tmp_path: Path) -> None:
    arrays = {
        "z": np.ones((2, 3), np.float32),
        "a": np.arange(2),
        "m": np.array([True, False]),
        "half": np.ones(3, np.float16),
        "brain": np.full(3, 1.5, ml_dtypes.bfloat16),
        "swapped": np.arange(3, dtype=">f4"),
        "scalar": np.float64(2.5),
    }
    inputs = build_inputs(NO_CONFIG, npz=npz(tmp_path, **arrays), dynamic=["z:0=batch"])
    assert [item.name for item in inputs] == list(arrays)
    assert [item.value.dtype for item in inputs] == [
        torch.float32,
        torch.int64,
        torch.bool,
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
    ]
    assert inputs[0].dims == {0: "batch"}
    assert inputs[1].dims == {}
    for item, array in zip(inputs, arrays.values(), strict=True):
        np.testing.assert_array_equal(item.value.double().numpy(), np.asarray(array, np.float64))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array(["a"]), "'x' has dtype <U1, which is not supported"),
        (np.ones(2, np.complex64), "'x' has dtype complex64"),
        (np.ones((2, 0)), r"'x' has shape \[2, 0\]; no size may be 0"),
        (np.array([{}], object), "object arrays"),
    ],
)
def test_members_that_are_no_tensors_are_refused(tmp_path: Path, array: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"(?i){message}"):
        build_inputs(NO_CONFIG, npz=npz(tmp_path, x=array))


def test_file_that_is_no_npz_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "inputs.npz"
    with pytest.raises(ConfigError, match=r"inputs\.npz does not exist"):
        build_inputs(NO_CONFIG, npz=path)
    np.save(path.with_suffix(".npy"), np.ones(3))
    with pytest.raises(ConfigError, match=r"inputs\.npy cannot be read as an npz file"):
        build_inputs(NO_CONFIG, npz=path.with_suffix(".npy"))


def test_example_of_size_one_on_a_dynamic_axis_is_refused_naming_it(tmp_path: Path) -> None:
    path = npz(tmp_path, x=np.ones((1, 3), np.float32))
    message = r"axis 0 of input 'x' is dynamic \('batch'\) but its example size is 1"
    with pytest.raises(ConfigError, match=message) as caught:
        build_inputs(NO_CONFIG, npz=path, dynamic=["x:0=batch"])
    assert "size >= 2" in str(caught.value.hint)


def test_derived_axis_of_size_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"axis 0 of input 'm' is dynamic \('past-2'\)"):
        build_inputs(NO_CONFIG, specs=["x:[past=3]", "m:[past-2]"])


def test_one_dimension_with_two_sizes_is_refused_naming_both_axes(tmp_path: Path) -> None:
    path = npz(tmp_path, x=np.ones((2, 3)), y=np.ones(3))
    with pytest.raises(ConfigError, match="2 from axis 0 of input 'x', 3 from axis 0 of input 'y'"):
        build_inputs(NO_CONFIG, npz=path, dynamic=["x:0=batch", "y:0=batch"])


def test_made_values_are_reproducible_and_differ_between_inputs() -> None:
    options = ["x:[batch=2,3]", "y:[batch=2,3]"]
    first, again = (build_inputs(NO_CONFIG, specs=options) for _ in range(2))
    torch.testing.assert_close(first[0].value, again[0].value, rtol=0, atol=0)
    assert not torch.equal(first[0].value, first[1].value)


@pytest.mark.parametrize("dtype", ["int64", "int32", "int16", "int8", "uint8"])
def test_made_whole_numbers_are_zero_and_one(dtype: str) -> None:
    (item,) = build_inputs(NO_CONFIG, specs=[f"ids:[100]:{dtype}"])
    assert item.value.dtype == getattr(torch, dtype)
    assert item.value.unique().tolist() == [0, 1]


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_made_floats_are_normal(dtype: str) -> None:
    (item,) = build_inputs(NO_CONFIG, specs=[f"x:[1000]:{dtype}"])
    assert item.value.dtype == getattr(torch, dtype)
    assert abs(item.value.double().std().item() - 1) < 0.2


def test_made_masks_are_true() -> None:
    (item,) = build_inputs(NO_CONFIG, specs=["mask:[5]:bool"])
    assert item.value.all()


def test_made_values_keep_to_the_range_of_the_configuration() -> None:
    config = configured(
        "{name: ids, shape: [500], dtype: int64, range: [7, 9]}",
        "{name: x, shape: [500], range: [-1, 0]}",
        dims="{}",
    )
    ids, x = build_inputs(config)
    assert ids.value.unique().tolist() == [7, 8, 9]
    assert -1 <= x.value.min() < -0.9
    assert -0.1 < x.value.max() <= 0


@pytest.mark.parametrize(
    ("described", "why"),
    [
        ("uint8=0..300", "values 0 to 300 do not fit uint8, which holds 0 to 255"),
        ("int8=-129..0", "values -129 to 0 do not fit int8, which holds -128 to 127"),
    ],
)
def test_range_that_the_dtype_does_not_hold_is_refused(described: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        build_inputs(NO_CONFIG, specs=[f"x:[2,8]:{described}"])


def test_dynamic_options_add_to_the_configuration() -> None:
    config = configured("{name: x, shape: [batch, 3, 8]}", dims="{batch: 2}")
    (item,) = build_inputs(config, dynamic=["x:0=batch,2=width"])
    assert item.dims == {0: "batch", 2: "width"}
    with pytest.raises(ConfigError, match="axis 0 of input 'x' is 'batch' already, not 'other'"):
        build_inputs(config, dynamic=["x:0=other"])


def test_options_win_over_the_configuration() -> None:
    config = configured("{name: x, shape: [batch]}", dims="{batch: 2}")
    assert build_inputs(config, specs=["y:[3]"])[0].name == "y"


@pytest.mark.parametrize("named", [True, False])
def test_file_takes_names_and_dynamic_axes_from_the_configuration(
    tmp_path: Path, named: bool
) -> None:
    config = configured(
        "{name: x, shape: [batch, 3]}",
        "{name: t, shape: [batch], dtype: int64}",
        dims="{batch: 2}",
    )
    arrays = {"x": np.ones((5, 3), np.float32), "t": np.arange(5)}
    path = npz(tmp_path, **arrays) if named else npz(tmp_path, *arrays.values())
    inputs = build_inputs(config, npz=path)
    assert [(item.name, item.dims) for item in inputs] == [("x", {0: "batch"}), ("t", {0: "batch"})]
    assert example_sizes(inputs) == {"batch": 5}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": np.ones((2, 3), np.float32)}, "its members are y, but the config's inputs are x"),
        (
            {"x": np.ones((2, 4), np.float32)},
            r"'x' is float32 \[2, 4\], but .* float32 \[batch, 3\]",
        ),
        ({"x": np.ones((2, 3))}, r"'x' is float64 \[2, 3\], but the config says float32"),
        ({"x": np.ones(2, np.float32)}, r"'x' is float32 \[2\]"),
    ],
)
def test_file_that_contradicts_the_configuration_is_refused(
    tmp_path: Path, arrays: dict[str, Any], message: str
) -> None:
    config = configured("{name: x, shape: [batch, 3]}", dims="{batch: 2}")
    with pytest.raises(ConfigError, match=message):
        build_inputs(config, npz=npz(tmp_path, **arrays))


def test_no_source_and_two_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the model's inputs are not known"):
        build_inputs(NO_CONFIG)
    with pytest.raises(ConfigError, match="--inputs and --input are both given"):
        build_inputs(NO_CONFIG, npz=npz(tmp_path, x=np.ones(2)), specs=["x:[2]"])


def takes_by_name(ids, mask=None, past=(), use_cache=True):
    return ids


def test_file_is_bound_by_name_in_any_order_with_constants_beside_it(tmp_path: Path) -> None:
    config = configured(
        "{name: past.0, shape: [past]}", "{name: ids, shape: [batch]}", dims="{past: 3, batch: 2}"
    )
    config = config.model_copy(update={"constants": {"use_cache": False, "mask": None}})
    path = npz(tmp_path, **{"past.0": np.ones(3, np.float32), "ids": np.ones(2, np.float32)})
    bound = build_call(takes_by_name, config, npz=path, specs=["use_cache=True"])
    assert [(item.name, item.dims) for item in bound.inputs] == [
        ("ids", {0: "batch"}),
        ("past.0", {0: "past"}),
    ]
    past = CallArgument(container="tuple", items=(CallArgument(input="past.0"),))
    assert bound.call.args == (
        CallArgument(input="ids"),
        CallArgument(),
        past,
        CallArgument(value=True),
    )


@pytest.mark.parametrize("is_file", [True, False])
def test_option_gives_no_constant_for_an_input(tmp_path: Path, is_file: bool) -> None:
    source = npz(tmp_path, ids=np.ones(2)) if is_file else None
    specs = ["ids=3"] if is_file else ["ids:[2]:int64", "ids=3"]
    with pytest.raises(ConfigError, match="gives 'ids' as a constant, and it is an input already"):
        build_call(takes_by_name, NO_CONFIG, npz=source, specs=specs)


def test_described_inputs_and_constants_are_bound_by_name() -> None:
    specs = ["past.0:[past=3]", "ids:[2]:int64", "use_cache=False"]
    bound = build_call(takes_by_name, NO_CONFIG, specs=specs)
    assert [item.name for item in bound.inputs] == ["ids", "past.0"]
    assert bound.call.kwargs["use_cache"] == CallArgument(value=False)


def test_values_in_memory_get_dynamic_axes_by_their_paths() -> None:
    given = {"past": (torch.ones(3),), "ids": torch.ones(2)}
    bound = build_call(takes_by_name, NO_CONFIG, npz=given, dynamic=["past.0:0=past"])
    assert [item.dims for item in bound.inputs] == [{}, {0: "past"}]
    with pytest.raises(ConfigError, match=r"constants are given by name \(use_cache\)"):
        build_call(takes_by_name, NO_CONFIG, npz=(torch.ones(2),), specs=["use_cache=True"])


# Options of the command line.

BATCH, PAST = DimExpr("batch"), DimExpr("past")


def test_sizes_and_dynamic_axes_are_parsed() -> None:
    (spec,) = parse_input_options(["x:[batch=2, 3, h = 8,8]:float16"])
    assert spec == ExampleSpec("x", (2, 3, 8, 8), "float16", {0: BATCH, 2: DimExpr("h")})


def test_dtype_is_float32_if_left_out_and_a_scalar_has_no_axes() -> None:
    assert parse_input_options(["t:[]"]) == (ExampleSpec("t", (), "float32", {}),)


def test_name_may_hold_colons_and_dots() -> None:
    assert parse_input_options(["a:b.c:[3]:bool"])[0].name == "a:b.c"


@pytest.mark.parametrize("mask", ["mask:[past+1]:bool", "mask:[past+1=6]:bool"])
def test_derived_dimension_takes_the_size_of_another_input(mask: str) -> None:
    specs = parse_input_options([mask, "past:[past=5,8]"])
    assert specs[0] == ExampleSpec("mask", (6,), "bool", {0: DimExpr("past", 1, 1)})
    assert specs[1].dims == {0: PAST}


def test_constants_are_told_from_tensors() -> None:
    options = ["use_cache=False", "x:[batch=2]", "mask=None", "n = 3", "mode=a b", "past.0.on=true"]
    assert parse_constants(options) == {
        "use_cache": False,
        "mask": None,
        "n": 3,
        "mode": "a b",
        "past.0.on": True,
    }
    assert [spec.name for spec in parse_input_options(options)] == ["x"]
    with pytest.raises(ConfigError, match="the name 'n' stands twice"):
        parse_constants(["n=1", "n=2"])


def test_derived_dimension_alone_gives_the_size_of_its_name() -> None:
    specs = parse_input_options(["mask:[past+1=6]", "past:[past]"])
    assert specs[1].shape == (5,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["x"], "expected NAME:[SHAPE]:DTYPE"),
        (["x:3,4"], "expected NAME:[SHAPE]:DTYPE"),
        (["x:[3]:float23"], "dtype 'float23' is not supported"),
        (["x:[batch=two]"], "axis 0: 'two' is not a size"),
        (["x:[batch=]"], "axis 0: '' is not a size"),
        (["x:[3,]"], "axis 1: '' is not a dimension"),
        (["x:[a*b=4]"], "axis 0: 'a*b' is not a dimension"),
        (["x:[batch]"], "axis 0: 'batch' has no example size"),
        (["x:[0]"], "axis 0 has size 0; a size must be at least 1"),
        (["x:[batch=1]"], "axis 0 is dynamic ('batch') but its example size is 1"),
        (["x:[2*n=5]"], "axis 0 has size 5, which '2*n' cannot be"),
        (
            ["x:[b=2]", "y:[b=3]"],
            "dimension 'b' has two sizes: 2 from --input 'x:[b=2]': axis 0, 3",
        ),
        (["x:[2]", "x:[3]"], "the name 'x' stands twice"),
    ],
)
def test_wrong_input_options_are_refused(options: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_input_options(options)


def test_inputs_of_a_configuration_are_described() -> None:
    config = load_config(
        None,
        ["inputs=[{name: x, shape: [batch, past+1], dtype: int64, range: [0, 5]}]"]
        + ["dims={batch: 2, past: 3}"],
    )
    expected = ExampleSpec("x", (2, 4), "int64", {0: BATCH, 1: DimExpr("past", 1, 1)}, (0, 5))
    assert specs_from_config(config) == (expected,)


def test_dynamic_options_are_parsed() -> None:
    inputs = [ModelInput("x", torch.ones(2, 2, 2)), ModelInput("y", torch.ones(2))]
    x, y = add_dynamic_axes(inputs, ["x:0=batch,-1=past + 1", "y:0=batch"])
    assert (x.dims, y.dims) == ({0: "batch", 2: "past+1"}, {0: "batch"})


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("x", "expected NAME:AXIS=DIM"),
        ("x:batch", "'batch' is not AXIS=DIM"),
        ("x:zero=batch", "'zero=batch' is not AXIS=DIM"),
        ("x:0=a*b", "'a*b' is not a dimension"),
        ("x:2=batch", "axis 2 is out of range; the input has 2 axes"),
        ("x:-3=batch", "axis -3 is out of range"),
        ("x:0=a,0=b", "axis 0 of 'x' is already 'a'"),
        ("x:0=a,-2=b", "axis 0 of 'x' is already 'a'"),
    ],
)
def test_wrong_dynamic_options_are_refused(option: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        add_dynamic_axes([ModelInput("x", torch.ones(2, 2))], [option])


def test_unknown_input_of_a_dynamic_option_is_refused_with_a_suggestion() -> None:
    inputs = [ModelInput("image", torch.ones(1)), ModelInput("t", torch.ones(1))]
    with pytest.raises(ConfigError, match="there is no input 'imag'") as caught:
        add_dynamic_axes(inputs, ["imag:0=batch"])
    assert "Did you mean 'image'? Inputs: image, t." in str(caught.value.hint)


def test_range_of_made_values_stands_behind_the_dtype() -> None:
    (spec,) = parse_input_options(["ids:[2,8]:int64=0..999"])
    assert (spec.name, spec.dtype, spec.value_range) == ("ids", "int64", (0, 999))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("ids:[2]:int64=9..1", "the first value exceeds the last"),
        ("m:[2]:bool=0..1", "a range has no meaning for dtype bool"),
        ("ids:[2]:int64=0..", "expected NAME:[SHAPE]:DTYPE"),
    ],
)
def test_range_that_says_nothing_is_refused(option: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_input_options([option])
