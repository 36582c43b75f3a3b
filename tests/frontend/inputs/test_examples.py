from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from moh_deploy.config.export_config import ExportConfig, load_config
from moh_deploy.errors import ConfigError
from moh_deploy.frontend.inputs.examples import build_call, build_inputs, example_sizes
from moh_deploy.package import CallArgument

NO_CONFIG = ExportConfig()


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
