import re

import pytest
import torch

from moh_deploy.config.dims import DimExpr
from moh_deploy.config.export_config import load_config
from moh_deploy.errors import ConfigError
from moh_deploy.frontend.inputs.input_specs import (
    ExampleSpec,
    add_dynamic_axes,
    parse_constants,
    parse_input_options,
    specs_from_config,
)
from moh_deploy.frontend.load.model import ModelInput

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
