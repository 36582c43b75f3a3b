"""Refuse a manifest whose values are of the right types and make no sense.

Who reads a package computes with what it says: a number of heads, a dimension, a range. What no
model can have is refused where it stands, before it ends as another error far from here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from moh_deploy.config.dims import DimExpr
from moh_deploy.errors import PackageError
from moh_deploy.ops.routers import FORMS
from moh_deploy.package.choices import choices_for
from moh_deploy.package.interface import (
    CachesInPlace,
    TensorInfo,
    TextGeneration,
    marks_padding,
    mask_input,
)
from moh_deploy.package.layer_info import Choice, LayerInfo
from moh_deploy.package.manifest import Made, Manifest, Proof, Rounding, Spread, Tuning
from moh_deploy.system.bounded_file import is_plain_name

# Say what is wrong with single values of a manifest, each with the key path that has it.

Problem = tuple[str, str]
"""A key path, and what is wrong there."""

MOST_SIZE = 2**63 - 1
"""Sizes are int64 in ONNX."""


def number_problems(key: str, value: int | None, least: int, most: int) -> Iterator[Problem]:
    if value is not None and not least <= value <= most:
        # A number of thousands of digits is not printed.
        shown = value if abs(value) <= MOST_SIZE else f"about 2^{abs(value).bit_length()}"
        yield key, f"is {shown}, expected {least} to {most}"


def share_problems(key: str, value: float | None) -> Iterator[Problem]:
    if value is not None and not 0 <= value <= 1:
        yield key, f"is {value}, expected 0 to 1"


def amount_problems(key: str, value: float) -> Iterator[Problem]:
    if not 0 <= value < math.inf:
        yield key, f"is {value}, expected a finite number, 0 or more"


def word_problems(key: str, value: str, known: Sequence[str]) -> Iterator[Problem]:
    if value not in known:
        yield key, f"is '{value[:100]}', expected one of {', '.join(known)}"


def repeated_problems(key: str, field: str, names: Sequence[str]) -> Iterator[Problem]:
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        if first.setdefault(name, index) != index:
            yield f"{key}[{index}].{field}", f"is '{name}', as that of {key}[{first[name]}]"
        if not name:
            yield f"{key}[{index}].{field}", "is empty"


def sizes_problems(key: str, sizes: Sequence[Mapping[str, int]]) -> Iterator[Problem]:
    for index, named in enumerate(sizes):
        for name, size in named.items():
            yield from number_problems(f"{key}[{index}].{name}", size, 0, MOST_SIZE)


def length_problems(key: str, found: Sequence[object], expected: int, of: str) -> Iterator[Problem]:
    # Empty lists stand for what was not measured.
    if found and len(found) != expected:
        yield key, f"has {len(found)} entries for {expected} {of}"


def listed(names: Mapping[str, object] | Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"


# Refuse measured times in a manifest that its readers could not compute with.


def tuning_problems(tuning: Tuning, layers: Sequence[LayerInfo]) -> Iterator[Problem]:
    """Say what nobody can have measured of a model with these layers."""
    # All lists run along these: one entry for each set of sizes, or for each layer.
    num_sets = len(tuning.sizes)
    yield from number_problems("tuning.threads", tuning.threads, 1, MOST_SIZE)
    yield from sizes_problems("tuning.sizes", tuning.sizes)
    yield from length_problems("tuning.weights", tuning.weights, num_sets, "sets of sizes")
    yield from length_problems("tuning.layer_ms", tuning.layer_ms, len(layers), "layers")
    yield from length_problems("tuning.model_ms", tuning.model_ms, num_sets, "sets of sizes")
    for index, weight in enumerate(tuning.weights):
        yield from amount_problems(f"tuning.weights[{index}]", weight)
    if any(tuning.layer_ms) and not sum(tuning.weights):
        yield "tuning.weights", "are all 0, so the times in layer_ms have no mean"
    for index, sets in enumerate(tuning.layer_ms):
        yield from _times_problems(f"tuning.layer_ms[{index}]", sets, num_sets)
    for index, times in enumerate(tuning.model_ms):
        yield from _amounts_problems(f"tuning.model_ms[{index}]", times)
    ranged = {
        name for layer in layers for range_ in layer.ranges for name in range_.size.split("*")
    }
    for index, sizes in enumerate(tuning.sizes):
        for name in sorted(ranged - sizes.keys()):
            yield f"tuning.sizes[{index}]", f"has no '{name[:100]}', by which layers choose"


def _times_problems(
    key: str, sets: Sequence[Mapping[str, float]], num_sets: int
) -> Iterator[Problem]:
    yield from length_problems(key, sets, num_sets, "sets of sizes")
    for index, times in enumerate(sets):
        yield from _amounts_problems(f"{key}[{index}]", times)
        if times.keys() != sets[0].keys():
            yield f"{key}[{index}]", f"has {listed(times)}, but {key}[0] has {listed(sets[0])}"


def _amounts_problems(key: str, times: Mapping[str, float]) -> Iterator[Problem]:
    for choice, milliseconds in times.items():
        yield from amount_problems(f"{key}.{choice}", milliseconds)


FLOATS = ("float16", "bfloat16", "float32", "float64")
_PRECISIONS = ("int4", "int8", *FLOATS)
DTYPES = (
    *FLOATS,
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("int4", "uint4", "complex64", "complex128"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
)

# It limits what readers allocate for heads.
_MOST_HEADS = 2**20
_DIGITS = len(str(MOST_SIZE))


def check_sense(path: Path, manifest: Manifest) -> None:
    """Check that a manifest describes a model that can be.

    Raises:
        PackageError: It does not; the message has the key path.
    """
    _refuse(path, _problems(manifest))


def _refuse(path: Path, problems: Iterator[Problem]) -> None:
    # The first problem is raised: those that follow may come of it.
    for key, problem in problems:
        raise PackageError(
            f"{path}: key '{key}': {problem}.",
            hint="Export the model again, or get the package again from where it was made.",
        )


def _problems(manifest: Manifest) -> Iterator[Problem]:
    for name, size in manifest.dims.items():
        yield from number_problems(f"dims.{name}", size, 1, MOST_SIZE)
    yield from _range_problems(manifest)
    for kind, tensors in (("inputs", manifest.inputs), ("outputs", manifest.outputs)):
        yield from repeated_problems(kind, "name", [tensor.name for tensor in tensors])
        for index, tensor in enumerate(tensors):
            yield from _tensor_problems(f"{kind}[{index}]", tensor, manifest.dims, kind == "inputs")
    yield from repeated_problems("layers", "path", [layer.path for layer in manifest.layers])
    for index, layer in enumerate(manifest.layers):
        yield from _layer_problems(f"layers[{index}]", layer, manifest.dims)
    yield from number_problems("total_flops", manifest.total_flops, 0, MOST_SIZE)
    yield from word_problems("precision", manifest.precision, _PRECISIONS)
    if manifest.proof is not None:
        yield from _proof_problems(manifest.proof)
    if manifest.tuning is not None:
        yield from tuning_problems(manifest.tuning, manifest.layers)
    if manifest.rounding is not None:
        yield from _rounding_problems(manifest.rounding, manifest)
    if manifest.made is not None:
        yield from _made_problems(manifest.made, manifest)
    if manifest.caches is not None:
        caches, inputs, outputs = manifest.caches, manifest.inputs, manifest.outputs
        yield from cache_problems(caches, inputs, outputs, manifest.dims)
    # How much of a cache is filled is told to the package; the original sees it by its size.
    tells = None if manifest.caches is None else manifest.caches.past_length
    names = tuple(info.name for info in manifest.inputs if info.name != tells)
    if manifest.call is not None and manifest.call.inputs != names:
        yield "call", f"takes {listed(manifest.call.inputs)}, but the inputs are {listed(names)}"
    if manifest.valid_tokens is not None:
        yield from _mask_problems(manifest.valid_tokens, manifest.inputs)
    if manifest.text_generation is not None:
        yield from _text_problems(manifest.text_generation)
    for name in manifest.files:
        if not is_plain_name(name):
            yield "files", f"names '{name[:300]}', expected a plain file name"


def _text_problems(about: TextGeneration) -> Iterator[Problem]:
    key = "text_generation"
    yield from number_problems(f"{key}.vocab_size", about.vocab_size, 1, MOST_SIZE)
    yield from number_problems(f"{key}.context_length", about.context_length, 1, MOST_SIZE)
    # A config may name tokens of a larger vocabulary than the model's: then they never come.
    for index, token in enumerate(about.eos_token_ids):
        yield from number_problems(f"{key}.eos_token_ids[{index}]", token, 0, MOST_SIZE)
    yield from number_problems(f"{key}.bos_token_id", about.bos_token_id, 0, MOST_SIZE)
    yield from number_problems(f"{key}.pad_token_id", about.pad_token_id, 0, about.vocab_size - 1)


def _range_problems(manifest: Manifest) -> Iterator[Problem]:
    for name, (smallest, largest) in manifest.dim_ranges.items():
        key = f"dim_ranges.{name}"
        if name not in manifest.dims:
            yield key, f"is no dynamic dimension, only {listed(manifest.dims)}"
            continue
        yield from number_problems(f"{key}[0]", smallest, 0, MOST_SIZE)
        yield from number_problems(f"{key}[1]", largest, smallest, MOST_SIZE)
    for index, dim_sum in enumerate(manifest.dim_sums):
        key = f"dim_sums[{index}]"
        for name in sorted(set(dim_sum.dims) - manifest.dims.keys()):
            yield f"{key}.dims", f"'{name}' is no dynamic dimension, only {listed(manifest.dims)}"
        yield from number_problems(f"{key}.most", dim_sum.most, 0, MOST_SIZE)


def _tensor_problems(
    key: str, tensor: TensorInfo, dims: Mapping[str, int], is_input: bool
) -> Iterator[Problem]:
    yield from word_problems(f"{key}.dtype", tensor.dtype, DTYPES)
    for axis, size in enumerate(tensor.shape):
        place = f"{key}.shape[{axis}]"
        if isinstance(size, int):
            yield from number_problems(place, size, 0, MOST_SIZE)
            continue
        for name in _names_in(size, is_input=is_input):
            if name not in dims:
                yield (
                    place,
                    f"is '{size[:100]}', but dims has no '{name[:100]}', only {listed(dims)}",
                )


def _names_in(text: str, *, is_input: bool) -> list[str]:
    """Return the names of dimensions in an expression.

    Those of inputs are linear in one name. What an output's follows from may be any arithmetic, of
    symbols, too, that stand for a size which depends on the data.
    """
    if is_input:
        return [DimExpr.of_input(text).name]
    names = _NAME.findall(text)
    return [name for name in names if not _UNKNOWN_SIZE.fullmatch(name)] if names else [text]


_NAME = re.compile(r"[^\W\d]\w*\b(?!\s*\()")  # but for functions: Max(...)
_UNKNOWN_SIZE = re.compile(r"[suz]\d+|None")


def _layer_problems(key: str, layer: LayerInfo, dims: Mapping[str, int]) -> Iterator[Problem]:
    if not layer.path:
        yield f"{key}.path", "is empty"
    yield from number_problems(f"{key}.num_heads", layer.num_heads, 1, _MOST_HEADS)
    yield from number_problems(f"{key}.num_kv_heads", layer.num_kv_heads, 1, layer.num_heads)
    yield from number_problems(f"{key}.head_dim", layer.head_dim, 1, MOST_SIZE)
    yield from number_problems(
        f"{key}.num_shared_heads", layer.num_shared_heads, 0, layer.num_heads
    )
    # Only routed heads are chosen, so top_k is at most their number.
    routed = layer.num_heads - (layer.num_shared_heads or 0)
    yield from number_problems(f"{key}.top_k", layer.top_k, 0, routed)
    yield from word_problems(f"{key}.router", layer.router, [form.name for form in FORMS])
    for name in ("batch", "seq_len", "kv_len"):
        yield from number_problems(f"{key}.{name}", getattr(layer, name), 1, MOST_SIZE)
    yield from share_problems(f"{key}.active_share", layer.active_share)
    for index, head in enumerate(layer.closed_heads):
        yield from number_problems(f"{key}.closed_heads[{index}]", head, 0, layer.num_heads - 1)
    # Two keys say the same, and readers rely on either.
    if layer.replaced != (layer.node is not None):
        yield f"{key}.node", f"is {layer.node!r:.100}, but replaced is {layer.replaced}"
    if layer.choice is not None:
        yield from _choice_problems(f"{key}.choice", layer.choice, layer)
    for index, range_ in enumerate(layer.ranges):
        yield from _choice_problems(f"{key}.ranges[{index}].choice", range_.choice, layer)
        yield from number_problems(f"{key}.ranges[{index}].at_most", range_.at_most, 0, MOST_SIZE)
        # A bound may be on a product: `batch*seq`.
        for name in range_.size.split("*"):
            if name not in dims:
                yield (
                    f"{key}.ranges[{index}].size",
                    f"is '{range_.size[:100]}', but '{name[:100]}' is no dynamic dimension, only"
                    f" {listed(dims)}",
                )
    types = layer.router_types
    if types is not None:
        for stage in ("projection", "scores", "gates"):
            dtype = getattr(types, stage)
            if dtype is not None:
                yield from word_problems(f"{key}.router_types.{stage}", dtype, DTYPES)


def _choice_problems(key: str, choice: Choice, layer: LayerInfo) -> Iterator[Problem]:
    choices = choices_for(layer)
    if choice not in choices:
        has = f"has only {listed(choices)}" if choices else "was not replaced"
        yield key, f"is '{choice}', but the layer {has}"


def _proof_problems(proof: Proof) -> Iterator[Problem]:
    if proof.max_abs_error < 0:
        yield "proof.max_abs_error", f"is {proof.max_abs_error}, expected 0 or more"
    # NaN stands where no decision was clear enough to be counted.
    if not math.isnan(proof.routing_agreement):
        yield from share_problems("proof.routing_agreement", proof.routing_agreement)
    yield from sizes_problems("proof.sizes", proof.sizes)


def _rounding_problems(rounding: Rounding, manifest: Manifest) -> Iterator[Problem]:
    # A floor of another model would excuse errors here.
    outputs, layers = [output.name for output in manifest.outputs], manifest.layers
    if len(rounding.layers) != len(layers):
        yield "rounding.layers", f"has {len(rounding.layers)} entries for {len(layers)} layers"
    for name, moved in rounding.outputs.items():
        if name not in outputs:
            yield f"rounding.outputs.{name[:100]}", f"is no output, only {listed(outputs)}"
        yield from _spread_problems(f"rounding.outputs.{name[:100]}", moved)
    for index, layer in enumerate(rounding.layers):
        for part in ("scores", "gates", "attention"):
            yield from _spread_problems(f"rounding.layers[{index}].{part}", getattr(layer, part))


def _made_problems(made: Made, manifest: Manifest) -> Iterator[Problem]:
    if made.kept and len(made.kept) != len(manifest.layers):
        yield "made.kept", f"has {len(made.kept)} entries for {len(manifest.layers)} layers"
    for index, (heads, layer) in enumerate(zip(made.kept, manifest.layers, strict=False)):
        if list(heads) != sorted(set(heads)) or len(heads) > layer.num_heads:
            yield (
                f"made.kept[{index}]",
                f"is {str(list(heads))[:100]}, expected at most {layer.num_heads} heads, ascending",
            )


def cache_problems(
    caches: CachesInPlace,
    inputs: Sequence[TensorInfo],
    outputs: Sequence[TensorInfo],
    dims: Collection[str],
) -> Iterator[Problem]:
    """Say what no caches of a model with these inputs, outputs and dimensions can be."""
    # What writes beyond a buffer, or into another one, is not seen by anything that reads it.
    for kind, tensors in (("past", inputs), ("present", outputs)):
        shapes = {tensor.name: tensor.shape for tensor in tensors}
        for index, buffer in enumerate(caches.buffers):
            name, key = getattr(buffer, kind), f"caches.buffers[{index}]"
            if name not in shapes:
                yield f"{key}.{kind}", f"is '{name[:100]}', expected one of {listed(shapes)}"
            elif not 0 < buffer.axis < len(shapes[name]):
                yield f"{key}.axis", f"is {buffer.axis}, and '{name}' has {len(shapes[name])} axes"
    sizes = {*dims, *(info.name for info in inputs if not info.shape)}
    past, new = caches.past_length.split(" - "), str(caches.new_length)
    for key, terms in (("past_length", past), ("new_length", [new])):
        for term in terms:
            if term not in sizes and not (term.isdecimal() and len(term) < _DIGITS):
                yield f"caches.{key}", f"'{term[:100]}' is none of {listed(sorted(sizes))}"
    if past[0].isdecimal() or len(past) > 2:
        said = caches.past_length[:100]
        yield "caches.past_length", f"is '{said}', expected `total - new`, or one size alone"
    if not caches.buffers:
        yield "caches.buffers", "is empty"
    yield from number_problems("caches.least_past", caches.least_past, 0, MOST_SIZE)
    yield from number_problems("caches.most_tokens", caches.most_tokens, 1, MOST_SIZE)


def _mask_problems(valid_tokens: str, inputs: Sequence[TensorInfo]) -> Iterator[Problem]:
    # A mask that is not there would stop every comparison, far from here.
    name, can_be_added = mask_input(valid_tokens), not marks_padding(valid_tokens)
    ranks = {info.name: len(info.shape) for info in inputs}
    dtypes = {info.name: info.dtype for info in inputs}
    if name not in ranks:
        yield "valid_tokens", f"is '{name[:100]}', which is no input, only {listed(ranks)}"
    elif ranks[name] != 2 and not (can_be_added and ranks[name] > 2 and "float" in dtypes[name]):
        yield (
            "valid_tokens",
            f"is '{name[:100]}', an input of {ranks[name]} axes, expected [batch, tokens], or"
            " floats [batch, ..., keys]",
        )


def _spread_problems(key: str, spread: Spread | None) -> Iterator[Problem]:
    if spread is not None:
        yield from amount_problems(f"{key}.rms", spread.rms)
        yield from amount_problems(f"{key}.largest", spread.largest)
