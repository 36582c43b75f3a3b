"""Example inputs: where their values and their dynamic axes come from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from moh_deploy.config.dims import DimExpr, DynamicAxis, solve_sizes
from moh_deploy.config.export_config import ExportConfig
from moh_deploy.errors import ConfigError
from moh_deploy.frontend.inputs import input_specs
from moh_deploy.frontend.inputs.arguments import BoundInputs, bind, flattened
from moh_deploy.frontend.inputs.npz_inputs import inputs_from_npz
from moh_deploy.frontend.load.model import ModelInput

_FRESH_ARRAY = "arr_"

# Values in memory, by name or position: tensors, arrays, constants, and containers of such.
GivenInputs = Mapping[str, object] | tuple[object, ...]


def build_inputs(
    config: ExportConfig,
    *,
    npz: Path | GivenInputs | None = None,
    specs: Sequence[str] = (),
    dynamic: Sequence[str] = (),
) -> tuple[ModelInput, ...]:
    """Return example inputs one by one, from the first source that is given.

    Values come from `--inputs FILE.npz`, else they are made for `--input` options, else for the
    configuration's inputs. Beside an npz file the configuration's inputs still say which axes are
    dynamic. `--dynamic` adds dynamic axes to any source.

    Args:
        npz: File whose members are the inputs, or values in memory, by name or position.
        specs: `--input` options.
        dynamic: `--dynamic` options.

    Raises:
        ConfigError: There is no source, sources contradict each other, or an example cannot be
            traced.
    """
    given = _given(config, npz, specs)
    return _with_dynamic_axes(config, flattened(given), npz, dynamic)


def build_call(
    forward: Callable[..., object],
    config: ExportConfig,
    *,
    npz: Path | GivenInputs | None = None,
    specs: Sequence[str] = (),
    dynamic: Sequence[str] = (),
) -> BoundInputs:
    """Return example inputs as `build_inputs` does, brought to the parameters of a forward.

    Raises:
        ConfigError: As `build_inputs` and `bind` do.
    """
    bound = bind(forward, _given(config, npz, specs))
    return replace(bound, inputs=_with_dynamic_axes(config, bound.inputs, npz, dynamic))


def _given(
    config: ExportConfig, npz: Path | GivenInputs | None, specs: Sequence[str]
) -> Mapping[str, object] | tuple[object, ...]:
    """Return values of inputs and constants, by name or position."""
    described = input_specs.parse_input_options(specs)
    constants = {**config.constants, **input_specs.parse_constants(specs)}
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
        described = described or input_specs.specs_from_config(config)
        named = {spec.name: spec.made(index) for index, spec in enumerate(described)}
    if not named:
        raise ConfigError(
            "the model's inputs are not known.",
            hint="Give --inputs FILE.npz, --input 'NAME:[batch=2,3,224,224]:float32', or a config"
            " with inputs.",
        )
    twice = sorted(input_specs.parse_constants(specs).keys() & named.keys())
    if twice:
        raise ConfigError(
            f"--input gives '{twice[0]}' as a constant, and it is an input already.",
            hint="Leave one of the two out.",
        )
    return {**named, **{name: value for name, value in constants.items() if name not in named}}


def _with_dynamic_axes(
    config: ExportConfig,
    inputs: tuple[ModelInput, ...],
    npz: Path | GivenInputs | None,
    dynamic: Sequence[str],
) -> tuple[ModelInput, ...]:
    """Return inputs with the axes dynamic that the configuration and options call so."""
    if npz is not None and config.inputs:
        source = str(npz) if isinstance(npz, Path) else "inputs"
        inputs = input_specs.described_by(config, inputs, source)
    inputs = input_specs.add_dynamic_axes(inputs, dynamic)
    example_sizes(inputs)
    return inputs


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
