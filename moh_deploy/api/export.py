"""The public functions that take a model: `export` and `load_original`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

from typing_extensions import Unpack

from moh_deploy.config.check_options import checked_config
from moh_deploy.config.options import CacheForm, ExportOptions, ModelOptions, RequiredLayers
from moh_deploy.package import ComputeType
from moh_deploy.package.before_export import check_export

# The frontend imports PyTorch: only when the options are checked.
if TYPE_CHECKING:
    import torch

    from moh_deploy.frontend.export_report import ExportReport
    from moh_deploy.frontend.prove.eager import EagerModel
    from moh_deploy.system.progress import SilentProgress

Model: TypeAlias = "Path | str | torch.nn.Module | torch.export.ExportedProgram"
Inputs: TypeAlias = Path | str | Mapping[str, object] | Sequence[object]


# A TypedDict for `Unpack`, so that editors and type checkers know the keyword arguments.
class ModelSettings(TypedDict, total=False):
    """The options of loading a model; see `ModelOptions` for what each one means."""

    config: Path | str | None
    overrides: Sequence[str]
    factory: str | None
    code_dirs: Sequence[Path | str]
    state_key: str | None
    trust_pickle: bool
    trust_code: bool
    task: Literal["text-generation"] | None
    dtype: Literal["float32", "float16", "bfloat16"] | None


class TraceSettings(ModelSettings, total=False):
    """The options of `export` but `inputs`; see `ExportOptions` for what each one means."""

    dynamic: Sequence[str]
    input_specs: Sequence[str]
    output_names: Sequence[str]
    opset: int | None
    compute_type: ComputeType | None
    require_layers: RequiredLayers | None
    valid_tokens: str | None
    cache: CacheForm | None


class ExportSettings(TraceSettings, total=False):
    """The options of `moh-deploy export`; see `ExportOptions` for what each one means."""

    inputs: Inputs | None


def export(
    model: Model,
    output: Path | str,
    *,
    progress: SilentProgress | None = None,
    **settings: Unpack[ExportSettings],
) -> ExportReport:
    """Turn a model, of PyTorch or an ONNX file, into a verified ONNX package.

        moh_deploy.export(model, "build/model", inputs={"x": images}, dynamic=["x:0=batch"])

    Args:
        model: A checkpoint's path, or a module or exported program in memory, which stays as it is.
        output: The package directory to write.
        progress: What to report the steps to.
        settings: As on the command line. `inputs` may also be a mapping of the names of forward's
            parameters to values, a tuple of positional arguments, or the only one: tensors, arrays,
            None, numbers, text, and tuples, lists, dicts and dataclasses of such.

    Returns:
        What was written and how well it agrees with the original.

    Raises:
        MoHDeployError: With the exit code of the kind of failure. Nothing is left behind.
    """
    options = ExportOptions(output=Path(output), **_fields(model, settings))
    check_export(options)
    from moh_deploy.frontend.export_package import export_package

    return export_package(options, progress=progress)


def load_original(model: Model, **settings: Unpack[ModelSettings]) -> EagerModel:
    """Load the model that a package was made from, to be measured or compared beside it.

        original = moh_deploy.load_original("model.pt", config="model.yaml")
        moh_deploy.bench("build/model", baselines=["eager", "plain-onnx"], original=original)

    Args:
        model: A checkpoint's path, or a module or exported program in memory, which stays as it is.
        settings: As on the command line of `export`.

    Raises:
        CheckpointError: The file cannot be read, is not trusted, or does not fit the module.
        ConfigError: An option or the configuration is wrong.
    """
    # Loaded as `export` loads it, but not traced: it runs as the user wrote it.
    options = ModelOptions(**_fields(model, settings))
    checked_config(options)
    from moh_deploy.frontend.prove.eager import open_eager

    return open_eager(options)


def _fields(model: Model, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the options, as the command line fills them."""
    fields: dict[str, Any] = {"model": Path(model) if isinstance(model, str) else model}
    for name, value in settings.items():
        if name == "inputs":
            fields[name] = _inputs(value)
        elif name == "code_dirs":
            fields[name] = tuple(map(Path, value))
        elif name == "config":
            fields[name] = None if value is None else Path(value)
        else:
            fields[name] = tuple(value) if isinstance(value, list) else value
    return fields


def _inputs(given: Inputs | None) -> Path | Mapping[str, object] | tuple[object, ...] | None:
    if isinstance(given, str):
        return Path(given)
    if given is None or isinstance(given, (Path, Mapping)):
        return given
    # A tensor is iterable, too: it is the only argument, and not as many as it is long.
    return tuple(given) if isinstance(given, (tuple, list)) else (given,)
