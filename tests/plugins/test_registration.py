"""What the library says of itself, and what it refuses to be registered with."""

import ctypes
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import onnxruntime as ort
import pytest

from moh_deploy import __version__
from moh_deploy.ops import OPS
from moh_deploy.runtime import kernel_use as ort_kernels
from tests.kernel_library import required_library
from tests.nightly import sampled
from tests.ops.case_models import case_model
from tests.ops.cases import OP_CASES
from tests.plugins.attention_setups import AttentionSetup
from tests.plugins.kernels import (
    EMULATED_AMX,
    INSTRUCTION_SETS,
    VECTOR_SETS,
    Kernels,
    kernels_of,
    run_session,
)


@pytest.fixture(scope="module")
def library() -> Path:
    return required_library()


def _text(library: Path, name: str) -> str:
    function = getattr(ctypes.CDLL(str(library)), name)
    function.restype = ctypes.c_char_p
    return function().decode()


def test_library_has_the_version_of_the_package(library: Path):
    assert _text(library, "moh_cpu_version") == __version__


def test_instruction_sets_are_named_best_first(library: Path):
    names = _text(library, "moh_cpu_instruction_sets").split(",")
    assert names == [name for name in INSTRUCTION_SETS if name in names]
    assert names[-1] == "baseline"


_IN_A_PROCESS_WITH_A_SMALL_STACK_FOR_SIGNALS = """
import ctypes, sys
class Stack(ctypes.Structure):
    _fields_ = [("memory", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
memory = ctypes.create_string_buffer(4096)
stack = Stack(ctypes.addressof(memory), 0, 4096)
assert ctypes.CDLL(None).sigaltstack(ctypes.byref(stack), None) == 0
names = ctypes.CDLL(sys.argv[1]).moh_cpu_instruction_sets
names.restype = ctypes.c_char_p
print(names().decode())
"""


def test_amx_is_not_listed_where_linux_refuses_it(library: Path):
    """Its registers would not fit on the stack that a thread has for signals."""
    kernels_of("amx_bf16")
    program = [sys.executable, "-c", _IN_A_PROCESS_WITH_A_SMALL_STACK_FOR_SIGNALS, str(library)]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    assert done.stdout.strip().split(",") == [*VECTOR_SETS]


def test_emulated_amx_is_on_no_list_and_can_be_asked_for(library: Path):
    assert EMULATED_AMX not in ort_kernels.instruction_sets(library)
    case = AttentionSetup(seq_len=20, kv_len=50, head_dim=40, value_dim=30, gates="all").case()
    emulated, portable = (Kernels(library, name) for name in (EMULATED_AMX, "baseline"))
    assert emulated.run(case)[0].tobytes() == portable.run(case)[0].tobytes()
    rounded = replace(emulated, compute_type="bfloat16").run(case)[0]
    assert rounded.tobytes() != portable.run(case)[0].tobytes()


def test_instruction_set_that_was_asked_for_computes(library: Path):
    """Read from the results: vectors of another length are summed in another order."""
    case = AttentionSetup(seq_len=2, kv_len=50, head_dim=140, value_dim=30, gates="all").case()
    bits = {
        name: Kernels(library, name).run(case)[0].tobytes()
        for name in ort_kernels.instruction_sets(library)
    }
    lengths = {"amx_bf16": 16, "avx512_bf16": 16, "avx512": 16, "avx2": 8, "baseline": 4}
    assert len(set(bits.values())) == len({lengths[name] for name in bits})


def test_best_instruction_set_is_the_default(library: Path):
    case = AttentionSetup(seq_len=2, kv_len=50, head_dim=140, value_dim=30, gates="all").case()
    best = ort_kernels.instruction_sets(library)[0]
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(library))
    model = case_model(case).SerializeToString()
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (output,) = run_session(session, case)
    assert output.tobytes() == Kernels(library, best).run(case)[0].tobytes()


@pytest.mark.parametrize("name", ["avx1024", "AVX2", "avx2 ", "avx2,baseline"])
def test_unknown_instruction_set_is_refused_naming_the_usable_ones(library: Path, name: str):
    usable = ",".join(ort_kernels.instruction_sets(library))
    with pytest.raises(Exception, match=rf"moh.instruction_set is '{name}'; expected .*: {usable}"):
        Kernels(library, name).options()


@pytest.mark.parametrize("compute_type", ["float16", "bf16", ""])
def test_unknown_compute_type_is_refused_naming_both(library: Path, compute_type: str):
    with pytest.raises(
        Exception, match=rf"moh.compute_type is '{compute_type}'; expected float32 or bfloat16"
    ):
        replace(Kernels(library, "baseline"), compute_type=compute_type).options()


def test_one_process_can_use_every_instruction_set_at_once(library: Path):
    case = OP_CASES["MoHAttention"][0]
    names = ort_kernels.instruction_sets(library)
    sessions = [Kernels(library, name).session(case_model(case)) for name in names]
    assert len(sessions) == len(names)


@sampled(4)
@pytest.mark.parametrize(
    ("op", "dtype"), [(op, dtype) for op, spec in OPS.items() for dtype in spec.inputs[0].types]
)
def test_every_dtype_of_every_op_has_a_kernel(library: Path, op: str, dtype: str):
    """A dtype without one would make a model fail to load, body or no body."""
    model = case_model(next(case for case in OP_CASES[op] if case.dtype == dtype))
    nodes = [node.name for node in model.graph.node]
    assert Kernels(library, "baseline").placed(model)[1] == dict.fromkeys(nodes, "kernel")
