"""The regression corpus: inputs whose routing is near a tie, and their file `corpus.npz`.

Members are named as in `vectors.npz`, and `SET/mined/layers`, `SET/mined/tokens`,
`SET/mined/margins`, `SET/mined/reference` beside them.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moh_deploy.errors import PackageError
from moh_deploy.package.manifest import Manifest
from moh_deploy.package.vectors import VectorSet, sets_from_members, vector_members
from moh_deploy.system.npz import Array, read_npz, write_npz

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
        """The smallest margin."""
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
