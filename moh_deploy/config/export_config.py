"""The export configuration: one YAML file a model, described in docs/export-configs.md."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, ValidationInfo

from moh_deploy.config import checked_yaml
from moh_deploy.config.dims import DimExpr, DynamicAxis, require_traceable
from moh_deploy.config.options import ExportOptions, ModelOptions
from moh_deploy.errors import ConfigError
from moh_deploy.system.bounded_yaml import parse_yaml
from moh_deploy.system.suggest import did_you_mean, shortened

# In a wheel beside the package's modules, in the sources beside the package.
SHIPPED = next(
    (path for base in Path(__file__).parents[1:3] if (path := base / "export_configs").is_dir()),
    Path("export_configs"),
)
"""Configurations of the published models, which come with moh-deploy."""

# Inputs of a configuration that are written as they are nested, brought to a flat list.
#
# inputs: ids: {shape: [batch, seq], dtype: int64} past: [{key: {shape: [batch, past, 8]}, value:
# {shape: [batch, past, 8]}}] use_cache: false
#
# is the same as a list of tensors called `ids`, `past.0.key` and `past.0.value`, and a constant.

ConstantValue = bool | int | float | str | None
_Key = str | int
# Place of each tensor, and of each constant that was among the inputs, to that in the document.
Places = Mapping[tuple[_Key, ...], tuple[_Key, ...]]

_OF_A_TENSOR = {"shape", "dtype", "range"}


def flat_document(
    document: Mapping[str, object], source: str
) -> tuple[Mapping[str, object], Places]:
    """Return a document whose inputs are a list of tensors, and where they are in the given one.

    Raises:
        ConfigError: A constant is among the inputs and in `constants`, too.
    """
    inputs = document.get("inputs")
    if not isinstance(inputs, dict):
        return document, {}
    leaves = [leaf for name, value in inputs.items() for leaf in _leaves((name,), value)]
    tensors = [(path, value) for path, value in leaves if isinstance(value, dict)]
    others = [(path, value) for path, value in leaves if not isinstance(value, dict)]
    constants = {_dotted(path): value for path, value in others}
    flat = {**document, "inputs": [{**value, "name": _dotted(path)} for path, value in tensors]}
    given = document.get("constants", {})
    if constants and isinstance(given, dict):
        if both := sorted(given.keys() & constants.keys()):
            raise ConfigError(
                f"{source}: {shortened(both)} is in inputs and in constants, expected one of them."
            )
        flat["constants"] = {**given, **constants}
    return flat, {
        **{("inputs", at): ("inputs", *path) for at, (path, _) in enumerate(tensors)},
        **{("constants", _dotted(path)): ("inputs", *path) for path, _ in others},
    }


def in_document(location: tuple[_Key, ...], places: Places) -> tuple[_Key, ...]:
    """Return where a place of a flattened document is in the given one."""
    return (*places.get(location[:2], location[:2]), *location[2:])


def _leaves(path: tuple[_Key, ...], value: object) -> Iterator[tuple[tuple[_Key, ...], object]]:
    """The tensors and constants in a value; what has a shape is a tensor."""
    if isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from _leaves((*path, index), item)
    elif isinstance(value, dict) and not _is_tensor(value):
        for key, item in value.items():
            yield from _leaves((*path, key), item)
    else:
        yield path, value


def _is_tensor(value: Mapping[object, object]) -> bool:
    if isinstance(value.get("shape"), list):
        return True
    # Its shape may be missing, or wrong, which is told of a tensor.
    nested = any(isinstance(item, dict) for item in value.values())
    return value.keys() <= _OF_A_TENSOR and not nested


def _dotted(path: tuple[_Key, ...]) -> str:
    return ".".join(map(str, path))


ModelDtype = Literal[
    "float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool"
]


class _Section(BaseModel):
    # Strict: pydantic would otherwise take the text '4' for a number. Unknown keys are mostly
    # misspelt ones.
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class ModelSection(_Section):
    """`model:` how the module is built for checkpoints that hold weights only."""

    factory: str | None = None  # `MODULE:CALLABLE`
    kwargs: dict[str, JsonValue] = {}  # keyword arguments of the factory
    # YAML has lists and text only: fields of tuples and paths are the ones that convert.
    # Directories of the user's code; relative ones are relative to the config file.
    code_dirs: Annotated[tuple[Annotated[Path, Field(strict=False)], ...], Field(strict=False)] = ()
    # Key of the weights in a training checkpoint, dotted for nested ones.
    state_key: str | None = None


class InputSection(_Section):
    """A tensor of `inputs:`."""

    # Of the parameter that takes it, with a path into it: `past.0.key`.
    name: Annotated[str, Field(min_length=1)]
    # Fixed sizes, and dimension expressions such as `batch` or `past+1`.
    shape: Annotated[tuple[int | str, ...], Field(strict=False)]
    dtype: ModelDtype = "float32"
    # First and last value that the example may hold; None for the dtype's own range.
    range: Annotated[tuple[float, float], Field(strict=False)] | None = None


class ExportConfig(_Section):
    """The content of an export configuration."""

    model: ModelSection = ModelSection()
    # In the file also a mapping of parameters' names to nested values.
    inputs: Annotated[tuple[InputSection, ...], Field(strict=False)] = ()
    # Names to what the model is called with beside the inputs.
    constants: dict[str, ConstantValue] = {}
    dims: dict[str, int] = {}  # dimension name to its size in the example
    # Names of the model's outputs, in order; empty to choose names.
    outputs: Annotated[tuple[str, ...], Field(strict=False)] = ()
    # What kernels may round the operands of attention's matrix products to.
    compute_type: Literal["float32", "bfloat16"] = "float32"
    # How many MoH layers have to be replaced, or `all`; None and 0 require none.
    require_layers: Annotated[int, Field(ge=0)] | Literal["all"] | None = None
    # The input that is 1 for valid tokens and 0 for padding; `not NAME`: 1 for padding; `all`:
    # every token counts.
    valid_tokens: Annotated[str, Field(min_length=1)] | None = None

    @pydantic.model_validator(mode="after")
    def _agrees_with_itself(self, info: ValidationInfo) -> ExportConfig:
        by_name = bool(info.context)
        places = [
            f"inputs.{input_section.name if by_name else i}"
            for i, input_section in enumerate(self.inputs)
        ]
        problems = [
            *_name_problems(self),
            *_shape_problems(self, places),
            *_range_problems(self, places),
        ]
        if problems:
            # All at once: a file is not to be mended one run at a time.
            raise ValueError("\n".join(problems))
        return self


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> ExportConfig:
    """Read a configuration and apply `key.path=value` overrides to it.

    Args:
        path: YAML file, or the name of a shipped one, such as `moh_vit_s_75`; None for an empty
            configuration.
        overrides: Such as `model.kwargs.depth=12` or `inputs.0.shape.2=96`; values are YAML.

    Raises:
        ConfigError: The file is unreadable or not of the schema, or an override does not apply.
    """
    # A file of the user's goes before a shipped one of its name, with its folder or without.
    if path is not None and path.parent in (Path(), Path(SHIPPED.name)) and not path.exists():
        named = (SHIPPED / path.name).with_suffix(".yaml")
        path = named if named.is_file() else path
    document = {} if path is None else checked_yaml.read_mapping(path, ExportConfig)
    # Overrides go into the document before it is checked, so both are held to the same schema;
    # which paths they set is kept to name the right source in messages.
    overridden = [_apply_override(document, override) for override in overrides]
    source = str(path) if path is not None else "--set"
    flat, places = flat_document(document, source)
    try:
        config = ExportConfig.model_validate(flat, context=bool(places))
    except ValidationError as error:
        problems = error.errors()
        for item in problems:
            if item["loc"][:1] == ("constants",) and len(item["loc"]) > 1:
                item["msg"] = "expected a tensor with a shape, null, true, false, a number or text"
            item["loc"] = in_document(item["loc"], places)
        lines = [
            checked_yaml.explain(
                item,
                document,
                source,
                model=ExportConfig,
                overridden=overridden,
                expectation=_expectation,
            )
            for item in problems
        ]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None
    if path is None:
        return config
    # An absolute directory stays: joining one to a parent gives it back.
    code_dirs = tuple(path.parent / directory for directory in config.model.code_dirs)
    model = config.model.model_copy(update={"code_dirs": code_dirs})
    return config.model_copy(update={"model": model})


def resolved_config(options: ModelOptions) -> ExportConfig:
    """Read the configuration that options name; what the options say themselves wins over it.

    Raises:
        ConfigError: As `load_config` does; an option has a wrong value; or the configuration names
            code, and is not trusted.
    """
    config = load_config(options.config, options.overrides)
    model = config.model
    checked_yaml.require_trust(
        str(options.config or "--set"),
        {
            "model.factory": None if options.factory else model.factory,
            "model.code_dirs": list(map(str, model.code_dirs)),
        },
        "--trust-code",
        is_given=options.trust_code,
    )
    chosen: dict[str, object] = {
        "factory": options.factory or model.factory,
        "code_dirs": (*options.code_dirs, *model.code_dirs),  # those of the options first
        "state_key": options.state_key or model.state_key,
    }
    settings: dict[str, object] = {"model": model.model_copy(update=chosen)}
    if isinstance(options, ExportOptions):
        required = options.require_layers
        is_number = isinstance(required, int) and required >= 0
        if required is not None and required != "all" and not is_number:
            raise ConfigError(
                f"require_layers is '{required}', expected a number from 0 on, or all."
            )
        settings |= {
            "outputs": options.output_names or config.outputs,
            "compute_type": options.compute_type or config.compute_type,
            "require_layers": config.require_layers if required is None else required,
            "valid_tokens": options.valid_tokens or config.valid_tokens,
        }
    return config.model_copy(update=settings)


def _apply_override(document: dict[str, object], override: str) -> tuple[checked_yaml.Key, ...]:
    """Set one value in the document and return its key path."""
    text, equals, value_text = override.partition("=")
    # `inputs[0].shape` is meant like `inputs.0.shape`.
    names = re.sub(r"\[(\d+)\]", r".\1", text.strip()).split(".")
    keys = tuple(int(name) if _INDEX.fullmatch(name) else name for name in names)
    if not equals or "" in keys:
        raise ConfigError(
            f"--set '{override}': expected KEY.PATH=VALUE.", hint="Example: --set dims.batch=4."
        )
    value = parse_yaml(value_text, f"the value of --set '{override}'", error=ConfigError)
    target: object = document
    for index, key in enumerate(keys):
        place = f"--set '{override}': {checked_yaml.dotted(keys[:index]) or 'the top'}"
        if not isinstance(target, (dict, list)):
            raise ConfigError(
                f"{place} is {checked_yaml.shown_value(target)}, which has no '{key}' to set."
            )
        if isinstance(target, list) and not (isinstance(key, int) and key < len(target)):
            raise ConfigError(
                f"{place} has no entry '{key}'; it has {len(target)}, counted from 0."
            )
        section: Any = target
        if index == len(keys) - 1:
            section[key] = value
        elif isinstance(target, dict) and target.get(key) is None:
            section[key] = {}  # an absent or empty section is made on the way
        target = section[key]
    return keys


_INDEX = re.compile(r"[0-9]{1,9}")


def _expectation(path: Sequence[checked_yaml.Key]) -> str | None:
    if "shape" in path[-2:-1]:
        return "expected a size or a dimension such as 'batch' or 'past+1'"
    if "require_layers" in path[-1:]:
        return "expected a number from 0 on, or 'all'"
    return None


def _name_problems(config: ExportConfig) -> Iterator[str]:
    for section, names in (
        ("inputs", [i.name for i in config.inputs]),
        ("outputs", config.outputs),
    ):
        for index, name in enumerate(names):
            if name in names[:index]:
                yield f"{section}.{index} repeats the name '{name}'."
    for entry in config.inputs:
        if entry.name in config.constants:
            yield f"'{entry.name}' is in inputs and in constants, expected one of them."


def _shape_problems(config: ExportConfig, places: Sequence[str]) -> Iterator[str]:
    used: set[str] = set()
    for entry, entry_place in zip(config.inputs, places, strict=True):
        for axis, size in enumerate(entry.shape):
            place = f"{entry_place}.shape.{axis}"
            if isinstance(size, str):
                yield from _dimension_problems(size, place, config.dims, used)
            elif size < 1:
                yield f"{place} is {size}: a size must be at least 1."
    for name in config.dims.keys() - used:
        yield f"dims.{name} is used by no input. {did_you_mean(name, used)}".rstrip()


def _dimension_problems(
    text: str, place: str, dims: Mapping[str, int], used: set[str]
) -> Iterator[str]:
    try:
        expr = DimExpr.parse(text, place=place)
        used.add(expr.name)
        # An example size of 0 or 1 would become a constant in the trace.
        if expr.name in dims:
            require_traceable(DynamicAxis(place, expr, expr.evaluate(dims)))
            return
    except ConfigError as error:
        yield f"{error.message} {error.hint or ''}".rstrip()
        return
    hint = f"Add dims: {{{expr.name}: 2}}. {did_you_mean(expr.name, dims)}".rstrip()
    yield f"{place} is '{text}', but dims gives no size for '{expr.name}'. {hint}"


def _range_problems(config: ExportConfig, places: Sequence[str]) -> Iterator[str]:
    for entry, place in zip(config.inputs, places, strict=True):
        if entry.range is not None and entry.range[0] > entry.range[1]:
            yield f"{place}.range is {list(entry.range)}: the first value exceeds the last."
        if entry.range is not None and entry.dtype == "bool":
            yield f"{place}.range has no meaning for dtype bool."
