"""Which attention is computed by Triton's kernel, and what is refused. Needs no Triton."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from tests.cuda import abi
from tests.cuda.libraries import Emulator
from tests.cuda.test_attention_choice import Sizes
from tests.cuda.triton.codes import SHARED_BYTES, Codes, installed

H100, B200, L40 = abi.Device(132, 90), abi.Device(148, 100), abi.Device(142, 89)
LLAMA = Sizes(kv_heads=8, head_dim=128, value_dim=128)
SMALL = Sizes(q_heads=2, kv_heads=1, queries=3, keys=5)
CUDA, TRITON = 0, 1


@pytest.fixture
def with_codes(emulator: Emulator):
    with installed(emulator, Codes()):
        yield


def _named(value: object) -> str:
    """A name that is the same in each process of pytest."""
    return f"sm_{value.compute_capability}" if isinstance(value, abi.Device) else str(value)


def _choose(emulator: Emulator, args: abi.AttentionArgs, device: abi.Device) -> abi.AttentionChoice:
    choice = abi.AttentionChoice()
    status = emulator.library.moh_cuda_attention_choose(
        ctypes.byref(args), ctypes.byref(device), abi.USUAL_OPEN_SHARE, ctypes.byref(choice)
    )
    assert status == 0, emulator.library.moh_cuda_last_error()
    return choice


@pytest.mark.parametrize(
    ("sizes", "device", "kernel", "reason"),
    [
        (LLAMA, H100, TRITON, "own matrix units"),
        (replace(LLAMA, dtype=abi.DTYPES["bfloat16"]), B200, TRITON, "own matrix units"),
        (Sizes(), H100, TRITON, "own matrix units"),
        (Sizes(head_dim=48, value_dim=48), H100, TRITON, "own matrix units"),
        (replace(LLAMA, dtype=abi.DTYPES["float32"]), H100, CUDA, "this GPU, dtype and head size"),
        (LLAMA, L40, CUDA, "this GPU, dtype and head size"),
        (Sizes(head_dim=192), H100, CUDA, "this GPU, dtype and head size"),
        (Sizes(head_dim=72, value_dim=72), H100, CUDA, "columns in vain"),
        (Sizes(head_dim=60), H100, CUDA, "whole, aligned 16 bytes"),
        (Sizes(kv_heads=8, queries=1, keys=32768), H100, CUDA, "too few to occupy"),
        (Sizes(q_heads=8, kv_heads=8, queries=512), H100, CUDA, "too few to occupy"),
    ],
    ids=_named,
)
def test_choice(
    emulator: Emulator, with_codes: None, sizes: Sizes, device: abi.Device, kernel: int, reason: str
):
    choice = _choose(emulator, sizes.args(), device)
    assert choice.kernel == kernel, choice.kernel_reason
    assert reason in choice.kernel_reason.decode()


@pytest.mark.parametrize(
    ("name", "pointer", "reason"),
    [
        ("mask.data", 4096, "the kernel of Triton takes no attn_mask"),
        ("nonpad_kv_seqlen", 4096, "the kernel of Triton takes no nonpad_kv_seqlen"),
        ("key", 4096 + 8, "aligned 16 bytes"),
    ],
)
def test_what_triton_does_not_take_is_for_the_other_kernel(
    emulator: Emulator, with_codes: None, name: str, pointer: int, reason: str
):
    args = LLAMA.args()
    *structure, field = name.split(".")
    setattr(getattr(args, structure[0]) if structure else args, field, pointer)
    choice = _choose(emulator, args, H100)
    assert choice.kernel == CUDA
    assert reason in choice.kernel_reason.decode()


def test_ranges_are_taken(emulator: Emulator, with_codes: None):
    args = LLAMA.args()
    args.key_ranges = 4096
    assert _choose(emulator, args, H100).kernel == TRITON


def test_a_library_without_triton_says_so(emulator: Emulator):
    choice = _choose(emulator, LLAMA.args(), H100)
    assert choice.kernel == CUDA
    assert b"this library has no kernel of Triton for this GPU" in choice.kernel_reason
    assert emulator.library.moh_cuda_triton_kernels() == b""


def test_the_library_says_which_kernels_it_has(emulator: Emulator, with_codes: None):
    lines = emulator.library.moh_cuda_triton_kernels().decode().splitlines()
    assert lines[:2] == ["sm_90 float16 64", "sm_90 float16 128"]
    assert len(lines) == len(Codes().entries)


@dataclass(frozen=True)
class Call:
    """A call of the attention with Triton's kernel asked for: no pointer here is one."""

    sizes: Sizes = SMALL
    tactic: str = "dense"
    key_splits: int = 1
    kernel: int = TRITON
    key: int = 4096
    mask: int | None = None
    ranges: int | None = None

    def run(self, emulator: Emulator) -> tuple[str, str]:
        """Return the status, and the text of the error."""
        args = self.sizes.args()
        for name in ("query", "key", "value", "gates", "output"):
            setattr(args, name, 4096)
        args.key, args.mask.data = self.key, self.mask
        args.key_ranges, args.key_ranges_batch = self.ranges, 2 * args.queries
        choice = abi.AttentionChoice(
            tactic=abi.TACTICS[self.tactic], key_splits=self.key_splits, kernel=self.kernel
        )
        status = emulator.library.moh_cuda_attention(
            ctypes.byref(args), ctypes.byref(choice), 4096, 1 << 20, None
        )
        return abi.STATUSES[status], emulator.library.moh_cuda_last_error().decode()


@pytest.mark.parametrize(
    ("call", "status", "text"),
    [
        (Call(kernel=2), "kInvalidArgument", "kernel 2; expected 0 (CUDA), 1 (Triton)"),
        (Call(key_splits=3), "kUnsupported", "does not split keys"),
        (Call(mask=4096), "kUnsupported", "takes no attn_mask"),
        (Call(key=4100), "kUnsupported", "whole, aligned 16 bytes"),
        (Call(replace(SMALL, head_dim=136)), "kUnsupported", "this GPU, dtype and head size"),
    ],
    ids=_named,
)
def test_calls_are_refused(
    emulator: Emulator, with_codes: None, call: Call, status: str, text: str
):
    """Before anything is launched, the list of rows included."""
    with emulator.configured(compute_capability=90):
        assert call.run(emulator)[0] == status
        assert text in emulator.library.moh_cuda_last_error().decode()
        assert emulator.counts().launches == 0


def test_a_gpu_without_code_is_refused(emulator: Emulator, with_codes: None):
    with emulator.configured(compute_capability=89):
        status, text = Call().run(emulator)
    assert status == "kUnsupported"
    assert "kernel 1 (Triton) was chosen, but this library has no kernel" in text


@pytest.fixture
def launched(emulator: Emulator, with_codes: None):
    """Whatever is launched: kernel, grid, block, shared bytes, parameters as bytes."""
    launches: list[tuple[object, ...]] = []

    def hook(code, name, grid, block, shared_bytes, parameters) -> int:
        launches.append((name, list(grid[:3]), list(block[:3]), shared_bytes, _bytes(parameters)))
        return 0

    function = abi.CodeHook(hook)
    emulator.library.moh_emulator_set_code_hook(function)
    yield launches
    emulator.library.moh_emulator_set_code_hook(None)


def _bytes(parameters: Callable[[int], int]) -> bytes:
    sizes = [8] * 21 + [4] * 10 + [8] * 2
    return b"".join(ctypes.string_at(parameters[at], size) for at, size in enumerate(sizes))


@pytest.mark.parametrize(("ranges", "ranges_batch"), [(None, -1), (8192, 600)])
def test_parameters_are_the_arguments(
    emulator: Emulator, launched: list, ranges: int | None, ranges_batch: int
):
    sizes = replace(SMALL, batch=2, queries=300)
    with emulator.configured(compute_capability=90):
        assert Call(sizes, ranges=ranges).run(emulator)[0] == "kOk"
    ((name, grid, block, shared_bytes, parameters),) = launched
    # 600 rows of each pair are 5 tiles of 128.
    assert (name, grid, block) == (b"attend", [2 * 5, 1, 1], [256, 1, 1])
    assert shared_bytes == SHARED_BYTES
    args = sizes.args()
    expected = abi.TritonAttentionArguments(
        *(4096,) * 5, None, None, ranges,
        args.query_strides, args.key_strides, args.value_strides, args.output_strides,
        ranges_batch, 2, 2, 1, 300, 5, 64, 64, 0, 0, 0.125 * 1.4426950408889634,
    )  # fmt: skip
    assert parameters == bytes(expected)


def test_code_is_loaded_once(emulator: Emulator, launched: list):
    with emulator.configured(compute_capability=90):
        assert Call().run(emulator)[0] == "kOk"
        before = emulator.counts().loads
        assert Call().run(emulator)[0] == "kOk"
        assert emulator.counts().loads == before
    assert len(launched) == 2


def test_code_that_no_gpu_runs_is_an_error(emulator: Emulator, with_codes: None):
    with emulator.configured(compute_capability=90):
        status, text = Call().run(emulator)
    assert status == "kCudaError"
    assert "MoHAttention, kernel of Triton: the launch failed with cudaError_t 719" in text
