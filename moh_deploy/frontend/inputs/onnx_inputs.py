"""The inputs of an ONNX file: names, types and dimensions that it declares, and example values."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count

import torch

from moh_deploy.config.dims import DimExpr
from moh_deploy.errors import ConfigError
from moh_deploy.frontend.fx.arrays import made_values
from moh_deploy.frontend.load.model import ModelInput
from moh_deploy.frontend.load.onnx_graph.file import OnnxInput, OnnxSource
from moh_deploy.frontend.load.onnx_graph.node import Graph
from moh_deploy.system.suggest import nearly_named

# Which integers an input of an ONNX graph may hold, where the graph itself says it.

_MOVES = {"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Expand", "Transpose"}


def index_range(graph: Graph, name: str) -> tuple[int, int] | None:
    """Return the first and last row of the tables that an input looks up; None if it does not.

    An input that does more than that, ids that are also compared with a padding id, is still legal
    within its table.
    """
    rows: list[int] = []
    values = {name}
    for node in graph.nodes:
        read = [value for value in node.inputs if value in values]
        if not read:
            continue
        if node.op_type in _MOVES and node.inputs[0] in values:
            values.update(node.outputs)
        elif node.op_type == "Gather" and len(node.inputs) > 1 and node.inputs[1] in values:
            table = graph.weights.get(node.inputs[0])
            axis = node.attributes.get("axis", 0)
            if table is not None and isinstance(axis, int):
                rows.append(table.shape.numpy()[axis])
        elif node.op_type == "EmbedLayerNormalization":
            # Ids, segments and positions, and the table of each.
            tables = {0: 2, 1: 4, 8: 3}
            for place, table_place in tables.items():
                if place < len(node.inputs) and node.inputs[place] in values:
                    table = graph.weights.get(node.inputs[table_place])
                    rows += [] if table is None else [table.shape.numpy()[0]]
    return (0, min(rows) - 1) if rows else None


# Dimensions get sizes of their own, from this one on: what is equal by chance shows nothing.
_FIRST_SIZE = 2


def made_inputs(source: OnnxSource) -> tuple[ModelInput, ...]:
    """Make up the inputs of a file, with the dimensions that it declares.

    Raises:
        ConfigError: Nothing in the file says which values an integer input may have.
    """
    dims = _dimensions(source.inputs)
    return tuple(_made(source, spec, dims, place) for place, spec in enumerate(source.inputs))


def fitted_inputs(
    source: OnnxSource, given: Sequence[ModelInput], *, described: bool
) -> tuple[ModelInput, ...]:
    """Return the user's inputs in the order of a file, with its names and dimensions.

    Args:
        described: The user describes them by their shapes: a size there fixes an axis.

    Raises:
        ConfigError: They do not fit the file.
    """
    dims = _dimensions(source.inputs)
    return tuple(
        _checked(spec, item, dims, described=described) for spec, item in _paired(source, given)
    )


def _dimensions(inputs: Sequence[OnnxInput]) -> dict[tuple[str, int], DimExpr]:
    """Return the dimension of each dynamic axis: input and axis to it."""
    found: dict[tuple[str, int], DimExpr] = {}
    for spec in inputs:
        for axis, text in enumerate(spec.shape):
            if text == "":
                found[spec.name, axis] = DimExpr(f"{_word(spec.name)}_dim_{axis}")
            elif isinstance(text, str):
                try:
                    found[spec.name, axis] = DimExpr.parse(text, place="")
                except ConfigError:
                    # `past_sequence_length + sequence_length`, `/layers/Mul_output_0`: any text is
                    # allowed, and what is no name becomes one.
                    word = _word(re.sub(r"\s*\+\s*", "_plus_", text))
                    found[spec.name, axis] = DimExpr(word)
    return found


def _word(text: str) -> str:
    word = re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_")
    return word if word and not word[0].isdigit() else f"dim_{word}"


def _sizes(dims: Mapping[tuple[str, int], DimExpr]) -> dict[str, int]:
    """Choose the size of each name: small, and of those that follow from it none too small."""
    least: dict[str, int] = {}
    for expr in dims.values():
        needed = -(-(_FIRST_SIZE - expr.offset) // expr.multiplier)
        least[expr.name] = max(least.get(expr.name, _FIRST_SIZE), needed)
    sizes: dict[str, int] = {}
    for name, size in least.items():
        sizes[name] = next(number for number in count(size) if number not in sizes.values())
    return sizes


def _made(
    source: OnnxSource, spec: OnnxInput, dims: Mapping[tuple[str, int], DimExpr], seed: int
) -> ModelInput:
    sizes = _sizes(dims)
    own = {axis: expr for (name, axis), expr in dims.items() if name == spec.name}
    shape = tuple(
        own[axis].evaluate(sizes) if isinstance(size, str) else size
        for axis, size in enumerate(spec.shape)
    )
    dtype: torch.dtype = getattr(torch, spec.dtype)
    limits: tuple[float, float] | None = None
    if not dtype.is_floating_point and dtype != torch.bool:
        limits = index_range(source.graph, spec.name)
        if limits is None:
            described = f"{spec.dtype}[{','.join(map(str, spec.shape))}]"
            raise ConfigError(
                f"{source.path}: input '{spec.name}' is {described}, and nothing in the file says"
                " which values it may have: it does not look up the rows of a table.",
                hint=f"Give examples with --inputs FILE.npz, or describe all inputs: --input"
                f" '{spec.name}:[...]:{spec.dtype}=0..1' (in a --config: range: [0, 1]).",
            )
        limits = (limits[0], min(limits[1], torch.iinfo(dtype).max))
    value = made_values(shape, spec.dtype, limits, seed=seed)
    return ModelInput(spec.name, value, {axis: str(expr) for axis, expr in own.items()})


def _paired(source: OnnxSource, given: Sequence[ModelInput]) -> list[tuple[OnnxInput, ModelInput]]:
    """Bring what the user gives to the order of the file: by name, or by place."""
    names = [spec.name for spec in source.inputs]
    by_name = {item.name: item for item in given}
    if len(given) != len(names):
        raise ConfigError(
            f"{source.path} has {len(names)} inputs ({', '.join(names)}), but {len(given)} are"
            f" given ({', '.join(by_name)})."
        )
    if by_name.keys() == set(names):
        return [(spec, by_name[spec.name]) for spec in source.inputs]
    strange = [name for name in by_name if name not in names]
    misspelt = nearly_named(by_name, names)
    if misspelt or len(strange) < len(given):
        unknown, suggestion = misspelt or (strange[0], "")
        raise ConfigError(
            f"{source.path} has no input '{unknown}'; it has {', '.join(names)}.",
            hint=f"{suggestion} Name all inputs as the file does, or none.".lstrip(),
        )
    return list(zip(source.inputs, given, strict=True))


def _checked(
    spec: OnnxInput,
    item: ModelInput,
    dims: Mapping[tuple[str, int], DimExpr],
    *,
    described: bool,
) -> ModelInput:
    """An input with the user's value, and the file's name and dimensions.

    Args:
        described: The user says which axes are dynamic: those left out are fixed.
    """
    value, given = item.value, item.parsed_dims
    fits = value.ndim == len(spec.shape) and all(
        isinstance(size, str) or value.shape[axis] == size for axis, size in enumerate(spec.shape)
    )
    if not fits or str(value.dtype) != f"torch.{spec.dtype}":
        raise ConfigError(
            f"input '{item.name}' is {str(value.dtype).removeprefix('torch.')}"
            f"{list(value.shape)}, but the file's '{spec.name}' is"
            f" {spec.dtype}[{', '.join(map(str, spec.shape))}]."
        )
    for axis in given:
        if (spec.name, axis) not in dims:
            raise ConfigError(
                f"axis {axis} of input '{spec.name}' is fixed in the file, at {spec.shape[axis]}.",
                hint="Export the original model again with that axis dynamic.",
            )
    own = {axis: expr for (name, axis), expr in dims.items() if name == spec.name}
    chosen = given if described else {**own, **given}
    return replace(
        item, name=spec.name, dims={axis: str(expr) for axis, expr in sorted(chosen.items())}
    )
