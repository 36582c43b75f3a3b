"""MoHAggregatedAttention on a GPU, beyond the cases of the op: sizes that take another way through
the kernel, and what it refuses. Run by the emulator."""

import ctypes
from dataclasses import replace

import numpy as np
import pytest

from moh_deploy.ops import OPS
from moh_deploy.ops.spec import FLOAT_TYPES, Arrays
from tests.cuda import abi
from tests.cuda.kernels import Kernels
from tests.cuda.libraries import Emulator
from tests.cuda.memory import HostMemory
from tests.nightly import in_turn, sampled
from tests.plugins.aggregated_attention_setups import AggregatedAttentionSetup as Setup

PUBLISHED = {  # MoH-ViT at 224 x 224: height and width, heads
    "stage_1": Setup(height=56, width=56, num_heads=3, head_dim=24, pooled=49),
    "stage_2": Setup(height=28, width=28, num_heads=6, head_dim=24, pooled=49),
    "stage_3": Setup(height=14, width=14, num_heads=12, head_dim=24, pooled=49),
}
_SEVERAL_TILES = Setup(num_heads=1, height=9, width=17, pooled=40)
SIZES = {
    "copied_by_element": replace(_SEVERAL_TILES, head_dim=13),
    "head_dim_64": replace(_SEVERAL_TILES, head_dim=64),
    "two_blocks_of_channels": replace(_SEVERAL_TILES, head_dim=72),
    "two_full_blocks_of_channels": replace(_SEVERAL_TILES, head_dim=128),
    "four_blocks_of_channels": replace(_SEVERAL_TILES, head_dim=200),
    "four_full_blocks_of_channels": replace(_SEVERAL_TILES, head_dim=256),
    "window_1x127": replace(_SEVERAL_TILES, kernel_height=1, kernel_width=127),
    "window_11x11": replace(_SEVERAL_TILES, kernel_height=11, kernel_width=11),
    **{
        f"window_11x11_head_dim_{dim}": replace(
            _SEVERAL_TILES, kernel_height=11, kernel_width=11, head_dim=dim
        )
        for dim in (64, 128, 256)
    },
    "one_row": replace(_SEVERAL_TILES, height=1, width=300, kernel_width=9),
    "one_column": replace(_SEVERAL_TILES, height=300, width=1, kernel_height=9),
}
LARGE_NUMBERS = 0x7B  # as bytes of every type: finite, and far too large


@sampled(8)
@pytest.mark.parametrize(("name", "dtype"), in_turn(PUBLISHED | SIZES, FLOAT_TYPES))
def test_size_is_right(emulator: Emulator, name: str, dtype: str):
    case = replace((PUBLISHED | SIZES)[name], dtype=dtype).case()
    with emulator.configured(seed=5, late_copies=1):
        assert Kernels(emulator.library).find_mismatch(case) is None
        assert emulator.counts().matrix_load_conflicts == 0


@sampled(6)
@pytest.mark.parametrize("late_copies", [0, 1])
@pytest.mark.parametrize("name", SIZES)
def test_nothing_is_read_before_it_is_written(emulator: Emulator, name: str, late_copies: int):
    """NaN in memory that nobody has written yet does not show it: rows that come out NaN are
    computed again."""
    case = replace(SIZES[name], dtype="float16").case()
    with emulator.configured(seed=7, late_copies=late_copies, unwritten=LARGE_NUMBERS):
        assert Kernels(emulator.library).find_mismatch(case) is None


class _Shifted(HostMemory):
    """Puts one of the blocks where no vector starts."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def put(self, data: np.ndarray) -> int:
        shift = 4 if len(self.blocks) == self._number else 0
        return super().put(np.concatenate([np.zeros(shift, np.uint8), data])) + shift


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", ["output", "query", "key", "value", "pooled_key", "pooled_value"])
def test_tensors_may_start_anywhere(emulator: Emulator, name: str, dtype: str):
    number = ("output", *abi.AGGREGATED_POINTERS).index(name)
    case = Setup(head_dim=8, dtype=dtype).case()
    assert Kernels(emulator.library, memory=_Shifted(number)).find_mismatch(case) is None


@pytest.mark.parametrize("dtype", FLOAT_TYPES)
def test_an_infinite_key_hides_itself_where_the_score_is_negative(emulator: Emulator, dtype: str):
    """It is -inf then, a weight of 0; and NaN in all of the row where it is positive."""
    setup = Setup(gates="all", normalize=False, optional=("query_embedding",), dtype=dtype)
    usual = setup.case()

    def build(rng: np.random.Generator) -> Arrays:
        query, key, *rest = usual.build(rng)
        key[0, 8, 3] = np.inf
        return (query, key, *rest)

    case = replace(usual, build=build)
    with np.errstate(invalid="ignore"):
        output = OPS[case.op].reference(case.inputs(), case.attributes)[0]
    assert np.isnan(output).any()
    assert not np.isnan(output[0, 7:10]).all()
    assert Kernels(emulator.library).find_mismatch(case) is None


def test_blocks_without_an_open_query_read_no_keys(emulator: Emulator):
    case = replace(PUBLISHED["stage_3"], gates="none").case()
    with emulator.configured():
        assert Kernels(emulator.library).find_mismatch(case) is None
        assert emulator.counts().copies == 0


@pytest.mark.parametrize(
    ("changes", "status", "text"),
    [
        ({"dtype": 0}, "kUnsupported", "dtype 0"),
        ({"head_dim": 257}, "kUnsupported", "head_dim 257; the limit is 256"),
        ({"heads": 0}, "kInvalidArgument", "0 heads"),
        ({"height": 0}, "kInvalidArgument", "image 0 x 6"),
        ({"pooled": 0}, "kInvalidArgument", "0 pooled tokens"),
        ({"batch": -1}, "kInvalidArgument", "batch -1"),
        ({"kernel_width": 4}, "kInvalidArgument", "kernel 3 x 4; expected odd numbers"),
        ({"kernel_height": 43}, "kUnsupported", "a window of 129 places; the limit is 128"),
        ({"kernel_height": 16385}, "kUnsupported", "a window of 49155 places; the limit is 128"),
        ({"height": 1 << 16, "width": 1 << 16}, "kUnsupported", "4294967296 pixels"),
        ({"gates": None}, "kInvalidArgument", "gates is null"),
        ({"pooled_value": None}, "kInvalidArgument", "pooled_value is null"),
    ],
    ids=str,
)
def test_what_is_refused(
    emulator: Emulator, changes: dict[str, int | None], status: str, text: str
):
    args = _arguments(**changes)
    got = emulator.library.moh_cuda_aggregated_attention(ctypes.byref(args), None)
    assert abi.STATUSES[got] == status
    assert text in emulator.library.moh_cuda_last_error().decode()


@pytest.mark.parametrize("changes", [{"batch": 0}, {"head_dim": 0}], ids=str)
def test_nothing_to_compute_needs_no_memory(emulator: Emulator, changes: dict[str, int]):
    args = _arguments(**changes, **dict.fromkeys(abi.AGGREGATED_POINTERS))
    assert emulator.library.moh_cuda_aggregated_attention(ctypes.byref(args), None) == 0


def _arguments(**changes: int | None) -> abi.AggregatedAttentionArgs:
    """Arguments with sizes that are right, and addresses that nothing may follow."""
    sizes = {"batch": 1, "heads": 2, "head_dim": 8, "height": 5, "width": 6, "pooled": 4}
    required = ("query", "key", "value", "pooled_key", "pooled_value", "gates", "output")
    usual = {"dtype": 1, "kernel_height": 3, "kernel_width": 3, **dict.fromkeys(required, 16)}
    return abi.AggregatedAttentionArgs(**(usual | sizes | changes))
