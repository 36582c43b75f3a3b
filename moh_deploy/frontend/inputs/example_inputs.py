"""Make the example inputs of a loaded model, as the user describes them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import torch

from moh_deploy.config.dims import DimExpr
from moh_deploy.config.export_config import ExportConfig
from moh_deploy.errors import ConfigError, ExportError
from moh_deploy.frontend.fx.arrays import made_values
from moh_deploy.frontend.inputs.arguments import BoundInputs, bind, flattened
from moh_deploy.frontend.inputs.directory_inputs import directory_inputs
from moh_deploy.frontend.inputs.given_inputs import GivenInputs, given_values, with_dynamic_axes
from moh_deploy.frontend.inputs.npz_inputs import inputs_from_npz
from moh_deploy.frontend.inputs.padding import named_tokens
from moh_deploy.frontend.inputs.program_inputs import inputs_from_program, with_values
from moh_deploy.frontend.load.decoder import Decoder
from moh_deploy.frontend.load.model import LoadedModel, ModelInput, example_sizes
from moh_deploy.frontend.load.onnx_graph.file import OnnxInput, OnnxSource
from moh_deploy.frontend.load.onnx_graph.node_call import Graph
from moh_deploy.system.suggest import nearly_named
from moh_deploy.system.user_code import describe_error
from moh_deploy.validate.reference.samples import ALL_TOKENS


def example_inputs(
    model: LoadedModel,
    config: ExportConfig,
    *,
    npz: Path | GivenInputs | None = None,
    specs: Sequence[str] = (),
    dynamic: Sequence[str] = (),
) -> tuple[LoadedModel, tuple[ModelInput, ...]]:
    """Return the inputs to trace the model with, and the model with the call that takes them.

    Args:
        config: Describes the inputs, unless `npz` or `specs` do.
        npz: File whose members are the inputs, or values in memory, by name or position.
        specs: `--input` options.
        dynamic: `--dynamic` options.

    Raises:
        ConfigError: They are missing, or contradict each other, the model or the program.
    """
    if model.decoder is not None:
        assert model.module is not None
        refused = {
            "--input": specs or config.inputs,
            "--dynamic": dynamic,
            "--output-name": config.outputs,
            "--valid-tokens": config.valid_tokens,
            "inputs in memory": npz and not isinstance(npz, Path),
        }
        names = [name for name, value in refused.items() if value]
        if names:
            raise ConfigError(
                f"{', '.join(names)} and --task text-generation are both given: the task says what"
                " a language model's inputs and outputs are.",
                hint="Leave them out; --inputs FILE.npz may give real tokens, input_ids"
                " [batch, tokens].",
            )
        tokens = npz if isinstance(npz, Path) else None
        decoded = decoder_inputs(model.module, model.decoder, tokens)
        return replace(model, call=decoded.call), decoded.inputs
    described = bool(specs or config.inputs)
    # An ONNX file and a program know their own inputs.
    source = None if model.original is None else model.original.source
    is_given = npz is not None or described or (source is None and model.program is None)
    own_inputs = partial(directory_inputs, model)
    given = given_values(config, npz, specs, own=own_inputs) if is_given else {}
    own = () if model.program is None else inputs_from_program(model.program)
    if model.module is not None and source is None:
        bound = bind(model.module.forward, given)
        model, inputs = replace(model, call=bound.call, unknown=bound.unknown), bound.inputs
    elif is_given:
        inputs = flattened(given)
    elif source is not None:
        inputs = made_inputs(source)
    else:
        inputs = tuple(replace(item, dims={}) for item in own)
    inputs = with_dynamic_axes(config, inputs, npz, dynamic)
    if source is not None and is_given:
        inputs = fitted_inputs(source, inputs, described=described)
    if model.program is not None:
        inputs = with_values(own, inputs)
    example_sizes(inputs)  # refuses axes that disagree, and sizes that a trace would fix
    mask = config.valid_tokens
    if mask is not None and (mask != ALL_TOKENS or any(item.name == mask for item in inputs)):
        made = npz is None and (model.program is None or described)
        inputs = named_tokens(inputs, mask, made=made)
    to = model.input_dtypes
    return model, tuple(
        replace(item, value=item.value.to(to.get(item.value.dtype, item.value.dtype)))
        for item in inputs
    )


# Example inputs of text generation: tokens, the mask over cache and tokens, and the cache.
#
# They are not written: the model said their number and sizes when it was run once.
# The cache holds what the model itself puts there for the tokens before.

BATCH, SEQ, PAST, TOTAL = "batch", "seq", "past", "total"
# Sizes from 2 on, all different, so that a trace takes none for another one.
_ROWS, _BEHIND, _NEW = 2, 5, 3


def decoder_inputs(module: torch.nn.Module, decoder: Decoder, npz: Path | None) -> BoundInputs:
    """Return example inputs of a model that `make_decoder` has given its forward.

    Args:
        npz: File with real tokens: `input_ids` [batch, tokens], and `attention_mask` where there is
            padding. Half of them are in the cache.

    Raises:
        ConfigError: The file holds something else, or too few tokens.
        ExportError: The model fails on the tokens that are to be in the cache.
    """
    if npz is not None:
        ids, mask = _given_tokens(npz, decoder)
        before = ids.shape[1] // 2
    else:
        generator = torch.Generator().manual_seed(0)
        # Token 0 is padding in many vocabularies, and its embedding may be zero.
        shape, before = (_ROWS, _BEHIND + _NEW), _BEHIND
        ids = torch.randint(1, decoder.vocab_size, shape, generator=generator)
        mask = torch.ones_like(ids)
        mask[0, :2] = 0
    empty = [
        {
            part: torch.zeros(len(ids), heads, 0, size, dtype=decoder.dtype)
            for part, size in (("key", key), ("value", value))
        }
        for heads, key, value in decoder.caches
    ]
    try:
        with torch.no_grad():
            found = module(ids[:, :before], mask[:, :before], tuple(empty))
    except Exception as error:  # the user's own code
        raise ExportError(
            f"the model itself fails on {before} tokens without a cache: {describe_error(error)}.",
            hint=None
            if npz is None
            else "Give fewer tokens in --inputs: half of them are put into the cache at once.",
        ) from error
    axes = {0: BATCH, 2: PAST}
    given: dict[str, object] = {
        "input_ids": ModelInput("input_ids", ids[:, before:].contiguous(), {0: BATCH, 1: SEQ}),
        "attention_mask": ModelInput("attention_mask", mask, {0: BATCH, 1: TOTAL}, says_valid=True),
    }
    for layer, pair in enumerate(found["present"]):
        for part, value in pair.items():
            name = f"past_key_values.{layer}.{part}"
            given[name] = ModelInput(name, value.contiguous(), axes)
    return bind(module.forward, given)


def decoder_outputs(decoder: Decoder) -> tuple[str, ...]:
    """Return the names of the outputs, in their order."""
    parts = (f"present.{i}.{part}" for i in range(len(decoder.caches)) for part in ("key", "value"))
    return ("logits", *parts)


def _given_tokens(npz: Path, decoder: Decoder) -> tuple[torch.Tensor, torch.Tensor]:
    members = {item.name: item.value for item in inputs_from_npz(npz)}
    ids = members.pop("input_ids", None)
    mask = members.pop("attention_mask", None)
    if ids is None or members or ids.ndim != 2 or ids.is_floating_point():
        raise ConfigError(
            f"{npz}: of text generation it holds input_ids [batch, tokens] of whole numbers, and"
            f" attention_mask of their shape; got {', '.join(members) or 'no input_ids'}."
        )
    mask = torch.ones_like(ids) if mask is None else mask
    if mask.shape != ids.shape or ids.shape[0] < 2 or ids.shape[1] < 4:
        raise ConfigError(
            f"{npz}: input_ids is {list(ids.shape)} and attention_mask {list(mask.shape)}; expected"
            " equal shapes, of 2 or more rows of 4 or more tokens.",
        )
    if int(ids.max()) >= decoder.vocab_size or int(ids.min()) < 0:
        raise ConfigError(
            f"{npz}: input_ids goes from {int(ids.min())} to {int(ids.max())}; the model has"
            f" {decoder.vocab_size} tokens."
        )
    return ids.long(), mask.long()


# The inputs of an ONNX file: names, types and dimensions that it declares, and example values.

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
