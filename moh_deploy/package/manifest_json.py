"""Read and write `manifest.json`, and refuse what this version does not understand.

The file carries a digest of what it says, which tells damage and edits by hand from what was
written; an attacker can compute it anew.
"""

import functools
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from moh_deploy.config.dims import DimExpr
from moh_deploy.errors import PackageError
from moh_deploy.package import interface
from moh_deploy.package.choices import choices_for
from moh_deploy.package.interface import LayerInfo
from moh_deploy.package.manifest import FORMAT_VERSION, Manifest, Tuning
from moh_deploy.system.bounded_file import is_plain_name, sha256_of_json
from moh_deploy.system.bounded_json import has_keys, read_json

MANIFEST_NAME = "manifest.json"
_DIGEST = "sha256"


def read_manifest(path: Path) -> Manifest:
    """Decode the manifest of a package.

    Raises:
        PackageError: Unreadable file, unknown format version, keys missing, unexpected or of a
            wrong type, something else than what was written, or something that no model can have.
    """
    content = _read_content(path)
    # First of all: keys of another version must not be reported as mistakes.
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise PackageError(
            f"{path}: format_version is {_short_repr(version)}, this version of moh-deploy supports"
            f" {FORMAT_VERSION}.",
            hint="Export the model again, or use the moh-deploy that made the package.",
        )
    written = content.pop(_DIGEST, None)  # older packages have no digest
    found = sha256_of_json(content)
    is_damaged = written is not None and written != found
    try:
        # As JSON text, not as objects: only so does strict mode take lists for tuples.
        manifest = _adapter().validate_json(json.dumps(content))
    except ValidationError as error:
        # Damage is called damage, and not a strange value.
        if not is_damaged or error.errors()[0]["type"] not in _OF_VALUES:
            raise PackageError(f"{path}: {_first_problem(error)}.", hint=GET_AGAIN) from error
    else:
        if not is_damaged:
            check_sense(path, manifest)
            return manifest
    raise PackageError(
        f"{path} has changed since the package was written: sha256 of what it says is {found},"
        f" expected {written}.",
        hint="Copy the package again, or export the model again."
        " `moh-deploy tune` is what changes how layers run.",
    )


_OF_VALUES = {
    *("finite_number", "greater_than_equal", "less_than_equal", "string_pattern_mismatch"),
    *("string_too_short", "value_error"),
}
"""The kinds of pydantic's errors that a field of the right type has."""


def manifest_text(manifest: Manifest) -> str:
    """Encode a manifest; `read_manifest` gives an equal one back."""
    content = json.loads(_adapter().dump_json(manifest))
    return (
        json.dumps({**content, _DIGEST: sha256_of_json(content)}, indent=2, ensure_ascii=False)
        + "\n"
    )


def looks_like_manifest(path: Path) -> bool:
    """Tell whether a file is the manifest of a package, of whatever format version."""
    # Not decoded: a package of another version, or a damaged one, may still be replaced.
    return has_keys(path, {"format_version", "files"})


@functools.cache
def _adapter() -> TypeAdapter[Manifest]:
    """Return the decoder of manifests, made once: that takes longer than reading one."""
    return TypeAdapter(Manifest)


def _read_content(path: Path) -> dict[str, object]:
    try:
        content = read_json(path, error=PackageError)
    except FileNotFoundError as error:
        raise PackageError(
            f"{path.parent} is not a package: it has no {MANIFEST_NAME}.",
            hint="Make one with `moh-deploy export MODEL --output DIR`.",
        ) from error
    if not isinstance(content, dict):
        raise PackageError(f"{path}: got a JSON {type(content).__name__}, expected an object.")
    return content


def _first_problem(error: ValidationError) -> str:
    # One problem is enough to act on.
    problem = error.errors(include_url=False)[0]
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"]]
    key = "".join(parts).removeprefix(".")
    kind = problem["type"]
    if kind == "missing":
        return f"key '{key}' is missing"
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"unexpected key '{key}'"
    if kind == "value_error":
        return f"key '{key}': {problem['ctx']['error']}"
    return f"key '{key}': {problem['msg']}, got {_short_repr(problem['input'])}"


def _short_repr(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."


_LONGEST_SHOWN = 200


# Refuse a manifest whose parts contradict each other.
#
# The range of a single value stands at its field. What follows here are statements about others:
# more chosen heads than there are, times of layers that the model does not have.

Problem = tuple[str, str]
"""A key path, and what is wrong there."""

GET_AGAIN = "Export the model again, or get the package again from where it was made."


def check_sense(path: Path, manifest: Manifest) -> None:
    """Check that a manifest describes a model that can be.

    Raises:
        PackageError: It does not; the message has the key path.
    """
    # The first problem is raised: those that follow may come of it.
    for key, problem in _problems(manifest):
        raise PackageError(
            f"{path}: key '{key}': {problem}.",
            hint=GET_AGAIN,
        )


def _problems(manifest: Manifest) -> Iterator[Problem]:
    inputs, outputs = manifest.inputs, manifest.outputs
    dims, layers = manifest.dims, manifest.layers
    known_dims = f"is no dynamic dimension, only {_listed(dims)}"
    for name, (smallest, largest) in manifest.dim_ranges.items():
        if name not in dims:
            yield f"dim_ranges.{name}", known_dims
        elif largest is not None:
            yield from _range_problems(
                f"dim_ranges.{name}[1]", largest, smallest, interface.MOST_SIZE
            )
    for index, dim_sum in enumerate(manifest.dim_sums):
        for name in sorted(set(dim_sum.dims) - dims.keys()):
            yield f"dim_sums[{index}].dims", f"'{name}' {known_dims}"
    yield from _repeated_problems("inputs", "name", [info.name for info in inputs])
    yield from _repeated_problems("outputs", "name", [info.name for info in outputs])
    for index, info in enumerate(inputs):
        yield from _shape_problems(f"inputs[{index}]", info, dims, is_input=True)
    for index, info in enumerate(outputs):
        yield from _shape_problems(f"outputs[{index}]", info, dims, is_input=False)
    yield from _repeated_problems("layers", "path", [layer.path for layer in layers])
    for index, layer in enumerate(layers):
        yield from _layer_problems(f"layers[{index}]", layer, dims)
    if manifest.tuning is not None:
        yield from _tuning_problems(manifest.tuning, layers)
    if manifest.rounding is not None:
        # A floor of another model would excuse errors here.
        yield from _length_problems("rounding.layers", manifest.rounding.layers, layers)
        names = [output.name for output in outputs]
        for name in manifest.rounding.outputs.keys() - names:
            yield f"rounding.outputs.{name[:100]}", f"is no output, only {_listed(names)}"
    if manifest.made is not None and manifest.made.kept:
        yield from _length_problems("made.kept", manifest.made.kept, layers)
        for index, (heads, layer) in enumerate(zip(manifest.made.kept, layers, strict=True)):
            if list(heads) != sorted(set(heads)) or len(heads) > layer.num_heads:
                shown = f"is {str(list(heads))[:100]}, expected at most {layer.num_heads} heads"
                yield f"made.kept[{index}]", f"{shown}, ascending"
    if manifest.caches is not None:
        yield from cache_problems(manifest.caches, inputs, outputs, dims)
    # How much of a cache is filled is told to the package; the original sees it by its size.
    tells = None if manifest.caches is None else manifest.caches.past_length
    called_with = tuple(info.name for info in inputs if info.name != tells)
    if manifest.call is not None and manifest.call.inputs != called_with:
        taken = _listed(manifest.call.inputs)
        yield "call", f"takes {taken}, but the inputs are {_listed(called_with)}"
    if manifest.valid_tokens is not None:
        yield from _mask_problems(manifest.valid_tokens, inputs)
    if manifest.new_tokens is not None and manifest.new_tokens not in manifest.dims:
        found = _listed(sorted(manifest.dims))
        yield "new_tokens", f"is '{manifest.new_tokens[:100]}', which is no dimension, only {found}"
    text = manifest.text_generation
    # A config may name other tokens of a larger vocabulary than the model's: they never come.
    if text is not None and text.pad_token_id is not None:
        key, most = "text_generation.pad_token_id", text.vocab_size - 1
        yield from _range_problems(key, text.pad_token_id, 0, most)
    for name in manifest.files:
        if not is_plain_name(name):
            yield "files", f"names '{name[:300]}', expected a plain file name"


def _range_problems(key: str, value: int | None, least: int, most: int) -> Iterator[Problem]:
    if value is not None and not least <= value <= most:
        yield key, f"is {str(value)[:40]}, expected {least} to {most}"


def _repeated_problems(key: str, field: str, names: Sequence[str]) -> Iterator[Problem]:
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        if first.setdefault(name, index) != index:
            yield f"{key}[{index}].{field}", f"is '{name}', as that of {key}[{first[name]}]"
        if not name:
            yield f"{key}[{index}].{field}", "is empty"


def _length_problems(
    key: str, found: Sequence[object], of: Sequence[object], what: str = "layers"
) -> Iterator[Problem]:
    if len(found) != len(of):
        yield key, f"has {len(found)} entries for {len(of)} {what}"


def _listed(names: Mapping[str, object] | Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"


def _shape_problems(
    key: str, tensor: interface.TensorInfo, dims: Mapping[str, int], *, is_input: bool
) -> Iterator[Problem]:
    for axis, size in enumerate(tensor.shape):
        place = f"{key}.shape[{axis}]"
        if isinstance(size, int):
            yield from _range_problems(place, size, 0, interface.MOST_SIZE)
            continue
        # Those of inputs are linear in one name. What an output's follows from may be any
        # arithmetic, of symbols, too, that stand for a size which depends on the data.
        names = [DimExpr.of_input(size).name] if is_input else _NAME.findall(size) or [size]
        for name in names:
            if name not in dims and (is_input or not _UNKNOWN_SIZE.fullmatch(name)):
                shown = f"is '{size[:100]}', but dims has no '{name[:100]}'"
                yield place, f"{shown}, only {_listed(dims)}"


_NAME = re.compile(r"[^\W\d]\w*\b(?!\s*\()")  # except functions: Max(...)
_UNKNOWN_SIZE = re.compile(r"[suz]\d+|None")


def _layer_problems(key: str, layer: LayerInfo, dims: Mapping[str, int]) -> Iterator[Problem]:
    heads, shared = layer.num_heads, layer.num_shared_heads
    yield from _range_problems(f"{key}.num_kv_heads", layer.num_kv_heads, 1, heads)
    yield from _range_problems(f"{key}.num_shared_heads", shared, 0, heads)
    # Only routed heads are chosen, so top_k is at most their number.
    yield from _range_problems(f"{key}.top_k", layer.top_k, 0, heads - (shared or 0))
    for index, head in enumerate(layer.closed_heads):
        yield from _range_problems(f"{key}.closed_heads[{index}]", head, 0, heads - 1)
    # Two keys say the same, and readers rely on either.
    if layer.replaced != (layer.node is not None):
        yield f"{key}.node", f"is {layer.node!r:.100}, but replaced is {layer.replaced}"
    choices = choices_for(layer)
    has = f"has only {_listed(choices)}" if choices else "was not replaced"
    ranged = {f".ranges[{index}]": range_ for index, range_ in enumerate(layer.ranges)}
    for place, choice in {"": layer.choice, **{at: r.choice for at, r in ranged.items()}}.items():
        if choice is not None and choice not in choices:
            yield f"{key}{place}.choice", f"is '{choice}', but the layer {has}"
    for place, range_ in ranged.items():
        # A bound may be on a product: `batch*seq`.
        for name in range_.size.split("*"):
            if name not in dims:
                shown = f"is '{range_.size[:100]}', but '{name[:100]}' is no dynamic dimension"
                yield f"{key}{place}.size", f"{shown}, only {_listed(dims)}"


def _tuning_problems(tuning: Tuning, layers: Sequence[LayerInfo]) -> Iterator[Problem]:
    """Say which measurements cannot be of a model with these layers."""
    # All lists run along these: one entry for each set of sizes, or for each layer. Empty ones
    # stand for what was not measured.
    of_sizes: dict[str, Sequence[object]] = {"weights": tuning.weights, "model_ms": tuning.model_ms}
    of_sizes |= {f"layer_ms[{index}]": sets for index, sets in enumerate(tuning.layer_ms)}
    for name, found in of_sizes.items():
        if found:
            yield from _length_problems(f"tuning.{name}", found, tuning.sizes, "sets of sizes")
    if tuning.layer_ms:
        yield from _length_problems("tuning.layer_ms", tuning.layer_ms, layers)
    if any(tuning.layer_ms) and not sum(tuning.weights):
        yield "tuning.weights", "are all 0, so the times in layer_ms have no mean"
    for number, sets in enumerate(tuning.layer_ms):
        key = f"tuning.layer_ms[{number}]"
        for index, times in enumerate(sets):
            if times.keys() != sets[0].keys():
                has = f"has {_listed(times)}, but {key}[0] has {_listed(sets[0])}"
                yield f"{key}[{index}]", has
    ranged = {
        name for layer in layers for range_ in layer.ranges for name in range_.size.split("*")
    }
    for index, sizes in enumerate(tuning.sizes):
        for name in sorted(ranged - sizes.keys()):
            yield f"tuning.sizes[{index}]", f"has no '{name[:100]}', by which layers choose"


def cache_problems(
    caches: interface.CachesInPlace,
    inputs: Sequence[interface.TensorInfo],
    outputs: Sequence[interface.TensorInfo],
    dims: Collection[str],
) -> Iterator[Problem]:
    """Say what no caches of a model with these inputs, outputs and dimensions can be."""
    # What writes beyond a buffer, or into another one, is not seen by anything that reads it.
    for kind, tensors in (("past", inputs), ("present", outputs)):
        shapes = {tensor.name: tensor.shape for tensor in tensors}
        for index, buffer in enumerate(caches.buffers):
            name, key = getattr(buffer, kind), f"caches.buffers[{index}]"
            if name not in shapes:
                yield f"{key}.{kind}", f"is '{name[:100]}', expected one of {_listed(shapes)}"
            elif not 0 < buffer.axis < len(shapes[name]):
                yield f"{key}.axis", f"is {buffer.axis}, and '{name}' has {len(shapes[name])} axes"
    sizes = {*dims, *(info.name for info in inputs if not info.shape)}
    past, new = caches.past_length.split(" - "), str(caches.new_length)
    for key, terms in (("past_length", past), ("new_length", [new])):
        for term in terms:
            if term not in sizes and not (term.isdecimal() and len(term) < _DIGITS):
                yield f"caches.{key}", f"'{term[:100]}' is not one of {_listed(sorted(sizes))}"
    if past[0].isdecimal() or len(past) > 2:
        said = caches.past_length[:100]
        yield "caches.past_length", f"is '{said}', expected `total - new`, or one size alone"
    if not caches.buffers:
        yield "caches.buffers", "is empty"


_DIGITS = len(str(interface.MOST_SIZE))


def _mask_problems(valid_tokens: str, inputs: Sequence[interface.TensorInfo]) -> Iterator[Problem]:
    # A mask that is not there would stop every comparison, far from here.
    name, can_be_added = (
        interface.mask_input(valid_tokens),
        not interface.marks_padding(valid_tokens),
    )
    found = {info.name: info for info in inputs}
    if name not in found:
        yield "valid_tokens", f"is '{name[:100]}', which is no input, only {_listed(found)}"
        return
    rank, is_float = len(found[name].shape), "float" in found[name].dtype
    if rank != 2 and not (can_be_added and rank > 2 and is_float):
        expected = "[batch, tokens], or floats [batch, ..., keys]"
        yield "valid_tokens", f"is '{name[:100]}', an input of {rank} axes, expected {expected}"
