"""Reference vectors recorded from the original model in `vectors.npz`, and the corpus of ties.

Members are named `SET/KIND/NAME`: `0/inputs/x`, `0/outputs/logits`, `0/gates/3` (layer 3 of the
manifest), `0/margins/3`, `0/scores/3`, `0/attention/3`, `0/sizes/batch`.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moh_deploy.config.dims import size_at
from moh_deploy.errors import PackageError
from moh_deploy.package.interface import FLOATS, TensorInfo
from moh_deploy.package.manifest import Manifest
from moh_deploy.package.spread import NUMBERS
from moh_deploy.system.npz import Array, read_npz, write_npz

VECTORS_NAME = "vectors.npz"


@dataclass(frozen=True)
class VectorSet:
    """One recorded run of the original model."""

    sizes: dict[str, int]  # dimension sizes of this run
    inputs: dict[str, Array]  # input name to array
    outputs: dict[str, Array]  # output name to array
    gates: tuple[Array, ...]  # one array [B, S, num_heads] for each layer, in the manifest's order
    # One array [B, S] a layer: the gap between the last chosen and the first unchosen routed score
    # of a token, in the units of the scores; inf where nothing is selected, 0 where a score is NaN.
    # Small values are near-ties.
    margins: tuple[Array, ...]
    # What the router of each layer ranks, [B, S, candidates], candidates being the last heads; None
    # for a layer without a ranking that is known. Empty where they were not recorded, as in older
    # packages.
    scores: tuple[Array | None, ...] = ()
    # What the attention of each layer computes, gates included, as `fingerprint` gives it, [B, S,
    # NUMBERS]; None and empty as above.
    attention: tuple[Array | None, ...] = ()


def write_vectors(path: Path, vectors: Sequence[VectorSet]) -> None:
    """Write all sets, loss-free for every dtype, NaN payloads and bfloat16 included."""
    members = (
        (f"{i}/{name}", array)
        for i, vector_set in enumerate(vectors)
        for name, array in vector_members(vector_set)
    )
    write_npz(path, dict(members))


def read_vectors(path: Path, manifest: Manifest) -> tuple[VectorSet, ...]:
    """Read all sets back.

    Raises:
        PackageError: Unreadable file, or members that do not fit the manifest.
    """
    return sets_from_members(path, read_npz(path, error=PackageError), manifest)


def sets_from_members(
    path: Path, members: Mapping[str, Array], manifest: Manifest
) -> tuple[VectorSet, ...]:
    """Return the sets that the members of a file hold.

    Raises:
        PackageError: Members that do not fit the manifest.
    """
    sets: dict[int, _Kinds] = {}
    for member, array in members.items():
        # Only the first two slashes separate: names of inputs may have more.
        index, kind, name = (*member.split("/", 2), "", "")[:3]
        # Numbers of thousands of digits are no numbers to Python.
        if not index.isdecimal() or len(index) > _MOST_DIGITS or kind not in _KINDS:
            raise PackageError(
                f"{path}: member '{member[:300]}' is not named SET/KIND/NAME, with KIND one of"
                f" {', '.join(_KINDS)}."
            )
        sets.setdefault(int(index), {kind: {} for kind in _KINDS})[kind][name] = array
    # A gap means that members are missing: a run would silently not be compared.
    if sorted(sets) != list(range(len(sets))):
        raise PackageError(
            f"{path}: vector sets are numbered {sorted(sets)}, expected 0, 1, ... without gaps."
        )
    return tuple(_set(f"{path}: set {i}", sets[i], manifest) for i in range(len(sets)))


_Kinds = dict[str, dict[str, Array]]
"""The members of one set, by kind and name."""

_OPTIONAL = ("scores", "attention")
"""Kinds that older packages, and some layers, lack."""

_MOST_DIGITS = 9
_KINDS = ("sizes", "inputs", "outputs", "gates", "margins", *_OPTIONAL)


def _set(where: str, kinds: _Kinds, manifest: Manifest) -> VectorSet:
    # By number: names of gates may hold slashes, which separate the parts of a member's name.
    layers = [str(i) for i in range(len(manifest.layers))]

    def taken(kind: str, expected: list[str]) -> dict[str, Array]:
        # Neither more nor less: either way the vectors are of another model.
        if kinds[kind].keys() != set(expected):
            raise PackageError(
                f"{where} has {kind} {sorted(kinds[kind])}, the manifest has {sorted(expected)}."
            )
        return {name: kinds[kind][name] for name in expected}

    def optional(kind: str) -> tuple[Array | None, ...]:
        """Return one entry a layer, or none at all where the file has nothing of this kind."""
        unknown = sorted(kinds[kind].keys() - set(layers))
        if unknown:
            raise PackageError(
                f"{where} has {kind} of layers {unknown}, the manifest has {len(layers)} layers."
            )
        return tuple(map(kinds[kind].get, layers)) if kinds[kind] else ()

    for name, array in kinds["sizes"].items():
        # Sizes are stored as arrays without axes, since an npz holds nothing else.
        if array.shape or not np.issubdtype(array.dtype, np.integer):
            raise PackageError(
                f"{where} has size '{name}' as {array.dtype}{list(array.shape)}, expected an"
                " integer."
            )
    return VectorSet(
        sizes={name: int(array) for name, array in kinds["sizes"].items()},
        inputs=taken("inputs", [spec.name for spec in manifest.inputs]),
        outputs=taken("outputs", [spec.name for spec in manifest.outputs]),
        gates=tuple(taken("gates", layers).values()),
        margins=tuple(taken("margins", layers).values()),
        scores=optional("scores"),
        attention=optional("attention"),
    )


def vector_members(vectors: VectorSet) -> Iterator[tuple[str, Array]]:
    """Yield the members of a set, by `KIND/NAME`."""
    for name, size in vectors.sizes.items():
        yield f"sizes/{name}", np.asarray(size, np.int64)
    for name, array in vectors.inputs.items():
        yield f"inputs/{name}", array
    for name, array in vectors.outputs.items():
        yield f"outputs/{name}", array
    for layer, (gates, margins) in enumerate(zip(vectors.gates, vectors.margins, strict=True)):
        yield f"gates/{layer}", gates
        yield f"margins/{layer}", margins
    for kind, recorded in (("scores", vectors.scores), ("attention", vectors.attention)):
        for layer, value in enumerate(recorded):
            if value is not None:
                yield f"{kind}/{layer}", value


# Refuse recorded runs that do not fit the model that the manifest describes.


def check_vectors(path: Path, sets: Iterable[VectorSet], manifest: Manifest) -> None:
    """Check dtypes and shapes of everything that was recorded.

    Args:
        path: The file that they are from.

    Raises:
        PackageError: Something does not fit the manifest, or the sizes of its run.
    """
    for index, vector_set in enumerate(sets):
        for problem in _problems(vector_set, manifest):
            raise PackageError(f"{path}: set {index}: {problem}.")


def _problems(vectors: VectorSet, manifest: Manifest) -> Iterator[str]:
    for name, size in vectors.sizes.items():
        if name not in manifest.dims or not 0 <= size < 2**63:
            yield f"a run has size '{name}' of {size}, the manifest has {[*manifest.dims]}"
    for spec in manifest.inputs:
        yield from _tensor_problems("input", spec, vectors.inputs[spec.name], vectors.sizes)
    for spec in manifest.outputs:
        # Dynamic sizes of outputs are not checked: they may be any arithmetic of those of inputs.
        yield from _tensor_problems("output", spec, vectors.outputs[spec.name], {})
    for index, layer in enumerate(manifest.layers):
        gates, margins = vectors.gates[index], vectors.margins[index]
        if gates.ndim != 3 or gates.shape[2] != layer.num_heads or gates.dtype.name not in FLOATS:
            yield (
                f"gates {index} are {_dtype_and_shape(gates)}, expected floating-point numbers"
                f" [batch, sequence, {layer.num_heads}]"
            )
        # One margin a token: [B, S] of the gates' [B, S, H].
        elif margins.shape != gates.shape[:2] or margins.dtype.name not in FLOATS:
            yield (
                f"margins {index} are {_dtype_and_shape(margins)}, expected floating-point numbers"
                f" {list(gates.shape[:2])}"
            )
        yield from _inner_problems(index, gates, vectors, layer.num_heads)


def _inner_problems(index: int, gates: Array, vectors: VectorSet, num_heads: int) -> Iterator[str]:
    """Check what is recorded of a layer beside its gates, where it is."""
    for kind, recorded, least, most in (
        # [B, S, candidates] and [B, S, NUMBERS].
        ("scores", vectors.scores, 1, num_heads),
        ("attention", vectors.attention, NUMBERS, NUMBERS),
    ):
        array = recorded[index] if recorded else None
        if array is None:
            continue
        fits = array.dtype == "float32" and array.ndim == 3 and array.shape[:2] == gates.shape[:2]
        if not fits or not least <= array.shape[2] <= most:
            numbers = str(least) if least == most else f"{least} to {most}"
            yield (
                f"{kind} {index} are {_dtype_and_shape(array)}, expected float32 numbers"
                f" {list(gates.shape[:2])} and {numbers} more"
            )


def _tensor_problems(
    kind: str, spec: TensorInfo, array: Array, sizes: dict[str, int]
) -> Iterator[str]:
    fits = array.dtype.name == spec.dtype and array.ndim == len(spec.shape)
    # A run need not have a size of its own for every dimension.
    fits &= all(
        size_at(expected, sizes) in (None, found)
        for expected, found in zip(spec.shape, array.shape, strict=False)
    )
    if not fits:
        expected = f"{spec.dtype}[{', '.join(map(str, spec.shape))}]"
        at = f" at {', '.join(f'{name}={size}' for name, size in sizes.items())}" if sizes else ""
        yield f"{kind} '{spec.name}' is {_dtype_and_shape(array)}, expected {expected}{at}"


def _dtype_and_shape(array: Array) -> str:
    return f"{array.dtype}{list(array.shape)}"


# The regression corpus: inputs whose routing is near a tie, and their file `corpus.npz`.
#
# Members are named as in `vectors.npz`, and `SET/mined/layers`, `SET/mined/tokens`,
# `SET/mined/margins`, `SET/mined/reference` beside them.

CORPUS_NAME = "corpus.npz"

MOST_SAMPLES, MOST_CORPUS_BYTES = 16, 4 * 2**20
"""What a corpus may hold: it travels with the package, and is run by every `verify`."""

_FUNCTION_BODIES = "the package's own function bodies (not the original model)"
ORIGINAL = "the original model"

_MINED = "mined"


@dataclass(frozen=True)
class MinedToken:
    """A token whose choice of heads is near a tie."""

    layer: int  # number of the layer in the manifest's order
    token: tuple[int, int]  # batch and position in the gates [B, S, H] of the sample
    margin: float  # see `VectorSet.margins`


@dataclass(frozen=True)
class CorpusSample:
    """One run that the corpus keeps."""

    vectors: VectorSet  # inputs, and what the reference computed on them
    # The tokens that it is kept for, the least clear one first; at least one.
    mined: tuple[MinedToken, ...]
    reference: str = _FUNCTION_BODIES  # what recorded outputs, gates and margins, in words

    @property
    def margin(self) -> float:
        """Return the smallest margin of its tokens."""
        return min(mined_token.margin for mined_token in self.mined)

    @property
    def num_bytes(self) -> int:
        """The bytes of its arrays in the file, without names."""
        return sum(array.nbytes for _, array in _members(self))

    def digest(self) -> str:
        """Return a digest of its inputs: two samples of one digest are the same."""
        content = hashlib.sha256()
        # Of inputs alone: what is computed on them may be recorded anew by the original.
        for name, array in sorted(self.vectors.inputs.items()):
            # Dtype and shape too, since the bytes alone may be those of another array.
            content.update(f"{name} {array.dtype} {array.shape} ".encode())
            content.update(np.ascontiguousarray(array).tobytes())
        return content.hexdigest()


def bounded(samples: Iterable[CorpusSample]) -> tuple[CorpusSample, ...]:
    """Return the first samples that a corpus has room for, each once."""
    kept: dict[str, CorpusSample] = {}
    room = MOST_CORPUS_BYTES
    for sample in samples:
        digest = sample.digest()
        # A sample that is too large is left out, and a smaller one behind it may still fit.
        if digest not in kept and len(kept) < MOST_SAMPLES and sample.num_bytes <= room:
            kept[digest] = sample
            room -= sample.num_bytes
    return tuple(kept.values())


def write_corpus(path: Path, samples: Sequence[CorpusSample]) -> None:
    """Write all samples, loss-free.

    Raises:
        PackageError: They are more than a corpus may hold.
    """
    # Callers bound what they keep; more than that would be lost without a word.
    if len(bounded(samples)) < len(samples):
        raise PackageError(
            f"the corpus has {len(samples)} samples of"
            f" {sum(sample.num_bytes for sample in samples)} bytes, expected at most {MOST_SAMPLES}"
            f" of {MOST_CORPUS_BYTES} bytes, each once."
        )
    numbered = enumerate(samples)
    write_npz(
        path, {f"{i}/{name}": array for i, sample in numbered for name, array in _members(sample)}
    )


def read_corpus(path: Path, manifest: Manifest) -> tuple[CorpusSample, ...]:
    """Read all samples back.

    Raises:
        PackageError: Unreadable file, or members that do not fit the manifest.
    """
    members = read_npz(path, error=PackageError)
    mined = {name: array for name, array in members.items() if f"/{_MINED}/" in name}
    # The rest is named as in vectors.npz, and read in the same way.
    recorded = {name: array for name, array in members.items() if name not in mined}
    sets = sets_from_members(path, recorded, manifest)
    return tuple(_sample(path, i, vector_set, mined, manifest) for i, vector_set in enumerate(sets))


def _members(sample: CorpusSample) -> Iterable[tuple[str, Array]]:
    yield from vector_members(sample.vectors)
    # [M] layers, [M, 2] tokens (batch, position), [M] margins, and one text.
    mined = [(token.layer, token.token, token.margin) for token in sample.mined]
    layers, tokens, margins = zip(*mined, strict=True) if mined else ((), (), ())
    yield f"{_MINED}/layers", np.asarray(layers, np.int64)
    yield f"{_MINED}/tokens", np.asarray(tokens, np.int64).reshape(-1, 2)
    yield f"{_MINED}/margins", np.asarray(margins, np.float64)
    yield f"{_MINED}/reference", np.asarray(sample.reference)


def _sample(
    path: Path, index: int, vectors: VectorSet, mined: dict[str, Array], manifest: Manifest
) -> CorpusSample:
    try:
        layers, tokens, margins, reference = (
            mined[f"{index}/{_MINED}/{name}"]
            for name in ("layers", "tokens", "margins", "reference")
        )
        found = tuple(
            MinedToken(int(layer), (int(batch), int(position)), float(margin))
            for layer, (batch, position), margin in zip(layers, tokens, margins, strict=True)
        )
    except (KeyError, TypeError, ValueError) as error:
        raise PackageError(f"{path}: set {index} does not say what was mined: {error}.") from error
    # Numbers of layers that the model has not would be an IndexError far from here.
    if not found or any(not 0 <= mined_token.layer < len(manifest.layers) for mined_token in found):
        raise PackageError(
            f"{path}: set {index} is kept for layers {layers.tolist()}, expected numbers of the"
            f" {len(manifest.layers)} layers of the manifest."
        )
    return CorpusSample(vectors, found, str(reference))
