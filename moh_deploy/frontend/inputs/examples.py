"""Example inputs: where their values and their dynamic axes come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from moh_deploy.config.dims import DimExpr, DynamicAxis, solve_sizes
from moh_deploy.config.export_config import ExportConfig
from moh_deploy.errors import ConfigError
from moh_deploy.frontend.inputs.arguments import BoundInputs, bind, flattened
from moh_deploy.frontend.inputs.input_specs import (
    ExampleSpec,
    made_values,
    parse_constants,
    parse_dynamic_options,
    parse_input_options,
    specs_from_config,
)
from moh_deploy.frontend.inputs.npz_inputs import inputs_from_npz
from moh_deploy.frontend.load.model import ModelInput

_FRESH_ARRAY = "arr_"

GivenInputs = Mapping[str, object] | tuple[object, ...]
"""Values in memory, by name or position: tensors, arrays, constants, and containers of such."""


def build_inputs(
    config: ExportConfig,
    *,
    npz: Path | GivenInputs | None = None,
    specs: Sequence[str] = (),
    dynamic: Sequence[str] = (),
    seed: int = 0,
) -> tuple[ModelInput, ...]:
    """Return example inputs one by one, from the first source that is given.

    Values come from `--inputs FILE.npz`, else they are made for `--input` options, else for the
    configuration's inputs. Beside an npz file the configuration's inputs still say which axes are
    dynamic. `--dynamic` adds dynamic axes to any source.

    Args:
        npz: File whose members are the inputs, or values in memory, by name or position.
        specs: `--input` options.
        dynamic: `--dynamic` options.
        seed: Of the made values.

    Raises:
        ConfigError: There is no source, sources contradict each other, or an example cannot be
            traced.
    """
    given = _given(config, npz, specs, seed)
    return _with_dynamic_axes(config, flattened(given), _source(npz), dynamic)


def build_call(
    forward: Callable[..., object],
    config: ExportConfig,
    *,
    npz: Path | GivenInputs | None = None,
    specs: Sequence[str] = (),
    dynamic: Sequence[str] = (),
    seed: int = 0,
) -> BoundInputs:
    """Return example inputs as `build_inputs` does, brought to the parameters of a forward.

    Raises:
        ConfigError: As `build_inputs` and `bind` do.
    """
    bound = bind(forward, _given(config, npz, specs, seed))
    return replace(bound, inputs=_with_dynamic_axes(config, bound.inputs, _source(npz), dynamic))


def _given(
    config: ExportConfig, npz: Path | GivenInputs | None, specs: Sequence[str], seed: int
) -> Mapping[str, object] | tuple[object, ...]:
    """Return values of inputs and constants, by name or position."""
    described = parse_input_options(specs)
    constants = {**config.constants, **parse_constants(specs)}
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
    if npz is not None:
        named = _named(config, npz)
    else:
        described = described or specs_from_config(config)
        named = {
            spec.name: spec.with_value(
                made_values(spec.shape, spec.dtype, spec.value_range, seed=seed + index)
            )
            for index, spec in enumerate(described)
        }
    if not named:
        raise ConfigError(
            "the model's inputs are not known.",
            hint="Give --inputs FILE.npz, --input 'NAME:[batch=2,3,224,224]:float32', or a config"
            " with inputs.",
        )
    twice = sorted(parse_constants(specs).keys() & named.keys())
    if twice:
        raise ConfigError(
            f"--input gives '{twice[0]}' as a constant, and it is an input already.",
            hint="Leave one of the two out.",
        )
    return {**named, **{name: value for name, value in constants.items() if name not in named}}


def _named(config: ExportConfig, npz: Path | Mapping[str, object]) -> dict[str, object]:
    """Return the values of a file or mapping, under the configuration's names if they have none."""
    given: dict[str, object] = (
        {item.name: item for item in inputs_from_npz(npz)} if isinstance(npz, Path) else {**npz}
    )
    names = [input_section.name for input_section in config.inputs]
    if len(names) != len(given) or not all(name.startswith(_FRESH_ARRAY) for name in given):
        return given
    return {
        name: replace(value, name=name) if isinstance(value, ModelInput) else value
        for name, value in zip(names, given.values(), strict=True)
    }


def _source(npz: Path | GivenInputs | None) -> str | None:
    """Say where the values come from; None where they are made."""
    return None if npz is None else str(npz) if isinstance(npz, Path) else "inputs"


def _with_dynamic_axes(
    config: ExportConfig,
    inputs: tuple[ModelInput, ...],
    source: str | None,
    dynamic: Sequence[str],
) -> tuple[ModelInput, ...]:
    if source is not None:
        inputs = _described_by(config, inputs, source)
    inputs = add_dynamic_axes(inputs, dynamic)
    example_sizes(inputs)
    return inputs


def add_dynamic_axes(
    inputs: Sequence[ModelInput], dynamic: Sequence[str]
) -> tuple[ModelInput, ...]:
    """Return the inputs with the axes of `--dynamic` options dynamic.

    Raises:
        ConfigError: An option is malformed or contradicts what is known of the axis.
    """
    added = parse_dynamic_options(dynamic, {item.name: item.value.ndim for item in inputs})
    return tuple(_with_axes(item, added.get(item.name, {})) for item in inputs)


def example_sizes(inputs: Sequence[ModelInput]) -> dict[str, int]:
    """Return the example size of every dimension name.

    Raises:
        ConfigError: Two axes disagree, or a dynamic axis has an example size below 2.
    """
    return solve_sizes(
        DynamicAxis(f"axis {axis} of input '{item.name}'", expr, item.value.shape[axis])
        for item in inputs
        for axis, expr in parsed_dims(item).items()
    )


def parsed_dims(item: ModelInput) -> dict[int, DimExpr]:
    """Return axis → dimension of an input."""
    return {
        axis: DimExpr.parse(text, place=f"axis {axis} of input '{item.name}'")
        for axis, text in item.dims.items()
    }


def _described_by(
    config: ExportConfig, inputs: tuple[ModelInput, ...], source: str
) -> tuple[ModelInput, ...]:
    """Return given inputs with the dynamic axes of the configuration's inputs of these names."""
    if not config.inputs:
        return inputs
    described = {spec.name: spec for spec in specs_from_config(config)}
    given = [item.name for item in inputs]
    if set(given) != described.keys():
        raise ConfigError(
            f"{source}: its members are {', '.join(given)}, but the config's inputs are"
            f" {', '.join(described)}.",
            hint="Make both agree; their order does not matter.",
        )
    return tuple(_described(item, described[item.name], source) for item in inputs)


def _described(item: ModelInput, spec: ExampleSpec, source: str) -> ModelInput:
    value = item.value
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
    return spec.with_value(value)


def _with_axes(item: ModelInput, added: Mapping[int, DimExpr]) -> ModelInput:
    dims = dict(item.dims)
    for axis, expr in added.items():
        if dims.setdefault(axis, str(expr)) != str(expr):
            raise ConfigError(
                f"--dynamic: axis {axis} of input '{item.name}' is '{dims[axis]}' already, not"
                f" '{expr}'."
            )
    return replace(item, dims=dims)
