"""The inputs that a user gives: from a file or memory, `--input` or the configuration.

`--input` is `NAME:[SHAPE]:DTYPE`, or `NAME=VALUE` for a constant; `--dynamic` names dynamic axes.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

import torch

from moh_deploy.config.dims import DimExpr, DynamicAxis, solve_sizes
from moh_deploy.config.export_config import ConstantValue, ExportConfig, ModelDtype
from moh_deploy.errors import ConfigError
from moh_deploy.frontend.fx.arrays import made_values
from moh_deploy.frontend.inputs.npz_inputs import inputs_from_npz
from moh_deploy.frontend.load.model import ModelInput
from moh_deploy.system.bounded_yaml import parse_yaml
from moh_deploy.system.suggest import did_you_mean

_FRESH_ARRAY = "arr_"

# Values in memory, by name or position: tensors, arrays, constants, and containers of such.
GivenInputs = Mapping[str, object] | tuple[object, ...]

_INPUT = re.compile(
    r"(?P<name>.+?):\[(?P<shape>[^\]]*)\](?::(?P<dtype>\w+))?"
    r"(?:=(?P<low>-?\d+(?:\.\d+)?)\.\.(?P<high>-?\d+(?:\.\d+)?))?"
)
_CONSTANT = re.compile(r"(?P<name>[^:=\[\]]+)=(?P<value>[^:\[\]{}]*)")
_DYNAMIC = re.compile(r"(?P<name>.+):(?P<axes>[^:]+)")


def given_values(
    config: ExportConfig,
    npz: Path | GivenInputs | None,
    specs: Sequence[str],
    *,
    own: Callable[[], Mapping[str, object]] = dict,
) -> Mapping[str, object] | tuple[object, ...]:
    """Return values of inputs and constants by name or position, from the first source given.

    Values come from `--inputs FILE.npz`, else they are made for `--input` options, else for the
    configuration's inputs, else they are the model's own.

    Args:
        npz: File whose members are the inputs, or values in memory, by name or position.
        specs: `--input` options.
        own: Returns what the model says of its inputs. A constant takes the place of an input.

    Raises:
        ConfigError: There is no source, or sources contradict each other.
    """
    described = parse_input_options(specs)
    chosen = parse_constants(specs)
    constants = {**config.constants, **chosen}
    if npz is not None and described:
        raise ConfigError(
            "--inputs and --input are both given; they exclude each other.",
            hint="Beside --inputs, --input gives constants alone: --input use_cache=False.",
        )
    if isinstance(npz, tuple):
        if constants:
            raise ConfigError(
                f"constants are given by name ({', '.join(constants)}), inputs by position.",
                hint="Give all of them by name: inputs={'x': x, ...}.",
            )
        return npz
    named: dict[str, object]
    if npz is not None:
        named = {i.name: i for i in inputs_from_npz(npz)} if isinstance(npz, Path) else {**npz}
        names = [section.name for section in config.inputs]
        # Values without names of their own have those of the configuration.
        if len(names) == len(named) and all(name.startswith(_FRESH_ARRAY) for name in named):
            named = {
                name: replace(value, name=name) if isinstance(value, ModelInput) else value
                for name, value in zip(names, named.values(), strict=True)
            }
    else:
        described = described or specs_from_config(config)
        named = {spec.name: spec.made(index) for index, spec in enumerate(described)}
        if not named:
            named = {name: value for name, value in own().items() if name not in constants}
    if not named:
        raise ConfigError(
            "the model's inputs are not known.",
            hint="Give --inputs FILE.npz, --input 'NAME:[batch=2,3,224,224]:float32', or a config"
            " with inputs.",
        )
    twice = sorted(chosen.keys() & named.keys())
    if twice:
        raise ConfigError(
            f"--input gives '{twice[0]}' as a constant, and it is an input already.",
            hint="Leave one of the two out.",
        )
    return {**named, **{name: value for name, value in constants.items() if name not in named}}


def with_dynamic_axes(
    config: ExportConfig,
    inputs: tuple[ModelInput, ...],
    npz: Path | GivenInputs | None,
    dynamic: Sequence[str],
) -> tuple[ModelInput, ...]:
    """Return inputs with the axes dynamic that the configuration and `--dynamic` options call so.

    Beside an npz file the configuration's inputs still say which axes are dynamic.

    Raises:
        ConfigError: They contradict the inputs.
    """
    if npz is not None and config.inputs:
        source = str(npz) if isinstance(npz, Path) else "inputs"
        inputs = described_by(config, inputs, source)
    return add_dynamic_axes(inputs, dynamic)


@dataclass(frozen=True)
class ExampleSpec:
    """An input whose example values are to be made."""

    name: str
    shape: tuple[int, ...]  # example sizes
    dtype: ModelDtype
    dims: dict[int, DimExpr]  # axis to dimension, for the dynamic axes
    # First and last value; None for the dtype's own range.
    value_range: tuple[float, float] | None = None

    def with_value(self, value: torch.Tensor) -> ModelInput:
        """Return the input with this value."""
        return ModelInput(self.name, value, {axis: str(expr) for axis, expr in self.dims.items()})

    def made(self, seed: int) -> ModelInput:
        """Return the input with a value that is made up."""
        value = made_values(self.shape, self.dtype, self.value_range, seed=seed)
        return self.with_value(value)


@dataclass(frozen=True)
class _Axis:
    """An axis as written: `3`, `batch=2`, or `past+1` whose size other axes give."""

    place: str
    expr: DimExpr | None
    size: int | None


def specs_from_config(config: ExportConfig) -> tuple[ExampleSpec, ...]:
    """Return the inputs that a configuration describes."""
    specs: list[ExampleSpec] = []
    for given in config.inputs:
        axes: list[_Axis] = []
        for axis, size in enumerate(given.shape):
            place = f"inputs.{given.name}.shape.{axis}"
            if isinstance(size, int):
                axes.append(_Axis(place, None, size))
            else:
                axes.append(_Axis(place, DimExpr.parse(size, place=place), None))
        specs.append(_resolve(given.name, axes, given.dtype, config.dims, given.range))
    return tuple(specs)


def parse_constants(options: Sequence[str]) -> dict[str, ConstantValue]:
    """Return the constants among `--input` options, such as `use_cache=False` or `mask=None`.

    Raises:
        ConfigError: One is given twice.
    """
    constants: dict[str, ConstantValue] = {}
    for option in filter(_is_constant, options):
        name, _, text = (part.strip() for part in option.partition("="))
        if name in constants:
            raise ConfigError(f"--input '{option}': the name '{name}' stands twice.")
        # Values are YAML, as those of --set, and Python's word for null.
        value: Any = parse_yaml(text, f"the value of --input '{option}'", error=ConfigError)
        plain = value is None or isinstance(value, (bool, int, float, str))
        constants[name] = None if value == "None" else value if plain else str(text)
    return constants


def parse_input_options(options: Sequence[str]) -> tuple[ExampleSpec, ...]:
    """Parse `--input` options such as `x:[batch=2,3,224,224]:float32`; constants are left out.

    `name=size` is a dynamic dimension with its example size, a bare number is fixed. A derived
    dimension is `past+1=9`, or `past+1` where another axis gives the size of `past`. The dtype is
    float32 if left out. `ids:[2,8]:int64=0..999` also says which values are made.

    Raises:
        ConfigError: An option is malformed, or sizes are missing, contradict each other or are
            below 1 (below 2 on a dynamic axis).
    """
    options = [option for option in options if not _is_constant(option)]
    parsed = [_parse_input(option) for option in options]
    names = [name for name, _, _, _ in parsed]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise ConfigError(f"--input '{options[index]}': the name '{name}' stands twice.")
    sizes = solve_sizes(
        DynamicAxis(axis.place, axis.expr, axis.size)
        for _, axes, _, _ in parsed
        for axis in axes
        if axis.expr is not None and axis.size is not None
    )
    return tuple(
        _resolve(name, axes, dtype, sizes, value_range=value_range)
        for name, axes, dtype, value_range in parsed
    )


def described_by(
    config: ExportConfig, inputs: Sequence[ModelInput], source: str
) -> tuple[ModelInput, ...]:
    """Return given inputs with the dynamic axes of the configuration's inputs of these names.

    Args:
        source: Where the inputs come from, for messages.

    Raises:
        ConfigError: Names, dtypes or sizes differ.
    """
    described = {spec.name: spec for spec in specs_from_config(config)}
    if {item.name for item in inputs} != described.keys():
        raise ConfigError(
            f"{source}: its members are {', '.join(item.name for item in inputs)}, but the config's"
            f" inputs are {', '.join(described)}.",
            hint="Make both agree; their order does not matter.",
        )
    found: list[ModelInput] = []
    for item in inputs:
        value, spec = item.value, described[item.name]
        dtype = str(value.dtype).removeprefix("torch.")
        fits = value.ndim == len(spec.shape) and all(
            axis in spec.dims or value.shape[axis] == size for axis, size in enumerate(spec.shape)
        )
        if not fits or dtype != spec.dtype:
            shape = ", ".join(str(spec.dims.get(i, size)) for i, size in enumerate(spec.shape))
            raise ConfigError(
                f"{source}: '{item.name}' is {dtype} {list(value.shape)}, but the config says"
                f" {spec.dtype} [{shape}]."
            )
        found.append(spec.with_value(value))
    return tuple(found)


def add_dynamic_axes(
    inputs: Sequence[ModelInput], options: Sequence[str]
) -> tuple[ModelInput, ...]:
    """Return inputs with the axes of `--dynamic` options dynamic: `x:0=batch,2=past+1`.

    Raises:
        ConfigError: An option is malformed, names an input or axis that does not exist, or
            contradicts what is known of the axis.
    """
    ranks = {item.name: item.value.ndim for item in inputs}
    added: dict[str, dict[int, DimExpr]] = {}
    for option in options:
        match = _DYNAMIC.fullmatch(option)
        if match is None:
            raise ConfigError(
                f"--dynamic '{option}': expected NAME:AXIS=DIM,...",
                hint="Example: --dynamic x:0=batch.",
            )
        name = match["name"]
        if name not in ranks:
            raise ConfigError(
                f"--dynamic '{option}': there is no input '{name}'.",
                hint=f"{did_you_mean(name, ranks)} Inputs: {', '.join(ranks) or 'none'}.".strip(),
            )
        of_input = added.setdefault(name, {})
        for entry in match["axes"].split(","):
            text, equals, dim = (part.strip() for part in entry.partition("="))
            if not equals or not re.fullmatch(r"-?\d+", text):
                raise ConfigError(
                    f"--dynamic '{option}': '{entry}' is not AXIS=DIM.",
                    hint="Example: --dynamic x:0=batch.",
                )
            if not -ranks[name] <= int(text) < ranks[name]:
                raise ConfigError(
                    f"--dynamic '{option}': axis {int(text)} is out of range; the input has"
                    f" {ranks[name]} axes."
                )
            axis = int(text) % ranks[name]
            expr = DimExpr.parse(dim, place=f"--dynamic '{option}'")
            if of_input.setdefault(axis, expr) != expr:
                raise ConfigError(
                    f"--dynamic '{option}': axis {axis} of '{name}' is already '{of_input[axis]}'."
                )
    for item in inputs:
        for axis, expr in added.get(item.name, {}).items():
            if (known := item.dims.get(axis, str(expr))) != str(expr):
                raise ConfigError(
                    f"--dynamic: axis {axis} of input '{item.name}' is '{known}' already, not"
                    f" '{expr}'."
                )
    texts = {name: {axis: str(expr) for axis, expr in of.items()} for name, of in added.items()}
    return tuple(replace(item, dims={**item.dims, **texts.get(item.name, {})}) for item in inputs)


def _is_constant(option: str) -> bool:
    return _CONSTANT.fullmatch(option.strip()) is not None


_Range = tuple[float, float]


def _parse_input(option: str) -> tuple[str, list[_Axis], ModelDtype, _Range | None]:
    match = _INPUT.fullmatch(option.strip())
    if match is None:
        raise ConfigError(
            f"--input '{option}': expected NAME:[SHAPE]:DTYPE, or NAME:[SHAPE]:DTYPE=FIRST..LAST,"
            " or NAME=VALUE for a constant.",
            hint="Examples: --input 'x:[batch=2,3,224,224]:float32', --input use_cache=False.",
        )
    dtype = match["dtype"] or "float32"
    supported = get_args(ModelDtype)
    if dtype not in supported:
        raise ConfigError(
            f"--input '{option}': dtype '{dtype}' is not supported.",
            hint=f"{did_you_mean(dtype, supported)} Supported: {', '.join(supported)}.",
        )
    entries = match["shape"].split(",") if match["shape"].strip() else []
    axes = [
        _parse_axis(entry.strip(), f"--input '{option}': axis {index}")
        for index, entry in enumerate(entries)
    ]
    value_range: _Range | None = None
    if match["low"] is not None:
        value_range = float(match["low"]), float(match["high"])
        if value_range[0] > value_range[1]:
            raise ConfigError(f"--input '{option}': the first value exceeds the last.")
        if dtype == "bool":
            raise ConfigError(f"--input '{option}': a range has no meaning for dtype bool.")
    return match["name"], axes, cast(ModelDtype, dtype), value_range


def _parse_axis(entry: str, place: str) -> _Axis:
    text, equals, size = (part.strip() for part in entry.partition("="))
    if not equals and text.isdecimal():
        return _Axis(place, None, int(text))
    if equals and not size.isdecimal():
        raise ConfigError(f"{place}: '{size}' is not a size; expected a whole number.")
    return _Axis(place, DimExpr.parse(text, place=place), int(size) if equals else None)


def _resolve(
    name: str,
    axes: Sequence[_Axis],
    dtype: ModelDtype,
    sizes: Mapping[str, int],
    value_range: tuple[float, float] | None = None,
) -> ExampleSpec:
    shape: list[int] = []
    for axis in axes:
        if axis.expr is None or axis.size is not None:
            size = cast(int, axis.size)
        elif axis.expr.name in sizes:
            size = axis.expr.evaluate(sizes)
        else:
            raise ConfigError(
                f"{axis.place}: '{axis.expr}' has no example size.",
                hint=f"Write {axis.expr}=SIZE.",
            )
        if size < 1:
            raise ConfigError(f"{axis.place} has size {size}; a size must be at least 1.")
        shape.append(size)
    dims = {index: axis.expr for index, axis in enumerate(axes) if axis.expr is not None}
    return ExampleSpec(name, tuple(shape), dtype, dims, value_range)
