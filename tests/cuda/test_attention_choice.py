"""Which way an attention takes on a GPU, what it needs for that, and what is refused."""

import ctypes
from dataclasses import dataclass, replace

import pytest

from tests.cuda import abi
from tests.cuda.libraries import Emulator

H100 = abi.Device(132, 90)


@dataclass(frozen=True)
class Sizes:
    """Of an attention of contiguous tensors [batch, token, head, feature]."""

    batch: int = 1
    q_heads: int = 32
    kv_heads: int = 32
    queries: int = 2048
    keys: int = 2048
    head_dim: int = 64
    value_dim: int = 64
    dtype: int = abi.DTYPES["float16"]

    def args(self) -> abi.AttentionArgs:
        return abi.AttentionArgs(
            dtype=self.dtype,
            query_strides=_strides(self.queries, self.q_heads, self.head_dim),
            key_strides=_strides(self.keys, self.kv_heads, self.head_dim),
            value_strides=_strides(self.keys, self.kv_heads, self.value_dim),
            output_strides=_strides(self.queries, self.q_heads, self.value_dim),
            batch=self.batch,
            q_heads=self.q_heads,
            kv_heads=self.kv_heads,
            queries=self.queries,
            keys=self.keys,
            head_dim=self.head_dim,
            value_dim=self.value_dim,
            scale=0.125,
        )


def _strides(tokens: int, heads: int, features: int) -> abi.HeadStrides:
    return abi.HeadStrides(tokens * heads * features, features, heads * features)


def _choose(
    emulator: Emulator, sizes: Sizes, share: float = abi.USUAL_OPEN_SHARE
) -> tuple[str, abi.AttentionChoice]:
    """Return the status and the choice."""
    choice = abi.AttentionChoice()
    status = emulator.library.moh_cuda_attention_choose(
        ctypes.byref(sizes.args()), ctypes.byref(H100), share, ctypes.byref(choice)
    )
    return abi.STATUSES[status], choice


def _workspace(emulator: Emulator, sizes: Sizes, tactic: str, splits: int) -> int:
    choice = abi.AttentionChoice(abi.TACTICS[tactic], splits, 0, None)
    size = ctypes.c_size_t()
    status = emulator.library.moh_cuda_attention_workspace(
        ctypes.byref(sizes.args()), ctypes.byref(choice), ctypes.byref(size)
    )
    assert status == 0
    return size.value


LONG = Sizes(batch=8, kv_heads=8, head_dim=128, value_dim=128)
DECODING = Sizes(kv_heads=8, queries=1, keys=32768)
ONE_HEAD = Sizes(q_heads=1, kv_heads=1, queries=512, keys=65536)


@pytest.mark.parametrize(
    ("sizes", "share", "tactic", "splits", "block", "reason"),
    [
        (Sizes(), 0.25, "sparse", 1, "128by32", "expected to save more than their list costs"),
        (Sizes(), 1.0, "dense", 1, "128by32", "expected to cost what it saves"),
        (LONG, 0.75, "sparse", 1, "128by32", "expected to save more"),
        (LONG, 1.0, "dense", 1, "128by32", "expected to cost what it saves"),
        (Sizes(batch=64, kv_heads=8, queries=1), 0.75, "dense", 1, "64by32", "nothing to skip"),
        (DECODING, 0.75, "dense", 66, "64by32", "one tile has all rows of a key/value head; keys"),
        (replace(DECODING, keys=600), 0.75, "dense", 2, "64by16", "to occupy the GPU"),
        (replace(DECODING, keys=100), 0.75, "dense", 1, "64by16", "nothing to skip"),
        (ONE_HEAD, 0.25, "sparse", 128, "128by32", "their list costs; keys are split to occupy"),
        (ONE_HEAD, 1.0, "dense", 66, "128by32", "what it saves; keys are split to occupy"),
        (Sizes(queries=0), 0.75, "dense", 1, "64by16", "nothing to skip"),
        (Sizes(dtype=abi.DTYPES["float32"]), 0.75, "sparse", 1, "64by16", "save more"),
        (Sizes(head_dim=256, value_dim=256), 0.75, "sparse", 1, "64by16", "save more"),
    ],
    ids=str,
)
def test_choice(
    emulator: Emulator,
    sizes: Sizes,
    share: float,
    tactic: str,
    splits: int,
    block: str,
    reason: str,
):
    status, choice = _choose(emulator, sizes, share)
    assert status == "kOk", emulator.library.moh_cuda_last_error()
    assert (choice.tactic, choice.key_splits) == (abi.TACTICS[tactic], splits)
    assert choice.block == abi.BLOCKS[block]
    assert reason in choice.reason.decode()


def test_the_largest_sizes_are_chosen_for_in_no_time(emulator: Emulator):
    """The model looks at few of the blocks of a grid, however many there are."""
    sizes = Sizes(batch=2**10, q_heads=2**10, kv_heads=2**10, queries=2**12, keys=2**30)
    assert _choose(emulator, sizes)[1].key_splits == 1


def test_workspace(emulator: Emulator):
    sizes = Sizes(kv_heads=8, queries=100, value_dim=36)
    rows = 32 * 100
    lists = 256 + 4 * rows  # 8 counts take 256 bytes, as every part does
    partials = 3 * rows * 4 * (2 + 40)
    assert _workspace(emulator, sizes, "dense", 1) == 0
    assert _workspace(emulator, sizes, "sparse", 1) == lists
    assert _workspace(emulator, sizes, "dense", 3) == partials
    assert _workspace(emulator, sizes, "sparse", 3) == lists + partials


@pytest.mark.parametrize(
    ("sizes", "status", "text"),
    [
        (Sizes(dtype=0), "kUnsupported", "dtype 0; expected float32"),
        (Sizes(keys=-1), "kInvalidArgument", "-1 keys; expected no negative number"),
        (Sizes(kv_heads=5), "kInvalidArgument", "32 query heads and 5 key/value heads"),
        (Sizes(q_heads=0), "kInvalidArgument", "0 query heads"),
        (Sizes(head_dim=0), "kInvalidArgument", "heads of size 0"),
        (Sizes(head_dim=257), "kUnsupported", "heads of size 257, values of size 64; the limit is"),
        (Sizes(value_dim=264), "kUnsupported", "values of size 264; the limit is 256"),
        (Sizes(queries=2**30, kv_heads=1), "kUnsupported", "rows of queries for a key/value head"),
        (Sizes(keys=2**30 + 1), "kUnsupported", "1073741825 keys; the limit is 1073741824"),
        (Sizes(batch=2**20, queries=2**20), "kUnsupported", "blocks of 4 rows"),
    ],
    ids=str,
)
def test_sizes_are_refused(emulator: Emulator, sizes: Sizes, status: str, text: str):
    assert _choose(emulator, sizes)[0] == status
    assert text in emulator.library.moh_cuda_last_error().decode()


@pytest.mark.parametrize("share", [-0.25, 1.25, float("nan")])
def test_a_share_that_is_none_is_refused(emulator: Emulator, share: float):
    assert _choose(emulator, Sizes(), share)[0] == "kInvalidArgument"
    text = emulator.library.moh_cuda_last_error().decode()
    assert f"open_share {share:g}; expected 0 to 1" in text


SMALL = Sizes(q_heads=2, kv_heads=1, queries=3, keys=5)
MASK = abi.AttentionMask(4096, abi.DTYPES["bool"], 0, 0, 0, 1)


@pytest.mark.parametrize(
    ("sizes", "choice", "wrong", "workspace", "status", "text"),
    [
        (SMALL, (2, 1), None, 0, "kInvalidArgument", "tactic 2; expected 0 (sparse), 1 (dense)"),
        (SMALL, (1, 0), None, 0, "kInvalidArgument", "0 key splits; expected 1 to 128"),
        (SMALL, (1, 129), None, 0, "kInvalidArgument", "129 key splits"),
        (SMALL, (1, 1, 3), None, 0, "kInvalidArgument", "block 3; expected 0 to 2"),
        (replace(SMALL, dtype=1), (1, 1, 1), None, 0, "kInvalidArgument", "block 1, with 32 rows"),
        (replace(SMALL, value_dim=136), (1, 1, 2), None, 0, "kInvalidArgument", "heads of up to"),
        (SMALL, (0, 1), None, 511, "kWorkspaceTooSmall", "511 bytes; this choice needs 512"),
        (SMALL, (1, 1), "gates", 0, "kInvalidArgument", "gates is null"),
        (SMALL, (1, 1), "key", 0, "kInvalidArgument", "key is null"),
        (replace(SMALL, batch=0), (1, 1), "output", 0, "kOk", ""),
        (SMALL, (0, 1), "workspace", 512, "kInvalidArgument", "multiple of 16"),
    ],
    ids=str,
)
def test_calls_are_refused(
    emulator: Emulator,
    sizes: Sizes,
    choice: tuple[int, ...],
    wrong: str | None,
    workspace: int,
    status: str,
    text: str,
):
    """Before anything is launched: no pointer here is one; a workspace may be misplaced."""
    args = sizes.args()
    for name in ("query", "key", "value", "gates", "output"):
        setattr(args, name, None if name == wrong else 4096)
    place = 4104 if wrong == "workspace" else 4096
    with emulator.configured():
        got = emulator.library.moh_cuda_attention(
            ctypes.byref(args), ctypes.byref(abi.AttentionChoice(*choice)), place, workspace, None
        )
        assert emulator.counts().launches == 0
    assert abi.STATUSES[got] == status
    assert text in emulator.library.moh_cuda_last_error().decode()
