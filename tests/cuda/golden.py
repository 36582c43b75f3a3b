"""Golden vectors: what a GPU made of each primitive. Emulator and interpreter are judged by them.

    python3 -m tests.gpu --stage correct --out DIR && cp DIR/primitives.npz tests/cuda/golden/

Writer and reader of the file are here, and nowhere else. Of each primitive it has as many blocks as
fit into `_BYTES_EACH`: a repository is to keep it. Needs numpy only.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "golden" / "primitives.npz"
MOST_BYTES = 100_000
_BYTES_EACH = 6_000

Words = np.ndarray
"""uint32 [blocks, words of a block]."""


@dataclass(frozen=True)
class Recorded:
    """A primitive's inputs, and what a GPU made of them."""

    words_in: Words
    words_out: Words


def encode(recorded: dict[str, Recorded]) -> bytes:
    """Return the file's content: of each primitive, the last block and others evenly spread."""
    arrays = {}
    for name, primitive in recorded.items():
        blocks = _kept_blocks(primitive)
        arrays[_key(name, "in")] = primitive.words_in[blocks]
        arrays[_key(name, "out")] = primitive.words_out[blocks]
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


def read(path: Path = GOLDEN) -> dict[str, Recorded]:
    """Return what a file has, by the names of the primitives."""
    with np.load(path) as file:
        names = dict.fromkeys(key.rpartition("/")[0] for key in file.files)
        return {name: Recorded(file[_key(name, "in")], file[_key(name, "out")]) for name in names}


def find_difference(name: str, got: Words, expected: Words, *, ulps: int) -> str | None:
    """Say where an output is not what it should be, or return None.

    Args:
        ulps: How many units in the last place a float32 may be off; 0: no bit may be.
    """
    wrong = _distance(got, expected) > ulps if ulps else got != expected
    if not wrong.any():
        return None
    block, word = (int(i) for i in np.argwhere(wrong)[0])
    return (
        f"{name}: {int(wrong.sum())} words differ; the first is word {word} of block {block}: "
        f"{got[block, word]:#010x}; expected {expected[block, word]:#010x}."
    )


def _key(name: str, end: str) -> str:
    return f"{name}/{end}"


def _kept_blocks(primitive: Recorded) -> np.ndarray:
    count = len(primitive.words_in)
    each = 4 * (primitive.words_in.shape[1] + primitive.words_out.shape[1])
    kept = min(count, max(2, _BYTES_EACH // each))
    return np.unique(np.linspace(count - 1, 0, kept).round().astype(int))


def _distance(got: Words, expected: Words) -> np.ndarray:
    """Units in the last place between float32 numbers; NaN is at 0 from NaN."""
    ordered = [
        np.where(words >> 31, -(words & 0x7FFFFFFF).astype(np.int64), words.astype(np.int64))
        for words in (got, expected)
    ]
    both_nan = np.isnan(got.view(np.float32)) & np.isnan(expected.view(np.float32))
    return np.where(both_nan, 0, np.abs(ordered[0] - ordered[1]))
