"""Runs a case on the kernels of a library, and nowhere else."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from moh_deploy.ops import OPS, is_moh_op
from moh_deploy.ops.cases import Case, find_mismatch, numpy_dtype
from moh_deploy.ops.onnx_schema import ELEMENT_TYPES
from moh_deploy.runtime import kernel_use as ort_kernels
from moh_deploy.runtime.layer_runs import LayerImpl
from moh_deploy.runtime.onnxruntime.session import Placement
from moh_deploy.runtime.onnxruntime.values import from_ort, to_ort
from tests.kernel_library import required_library
from tests.ops.case_models import case_model, named_inputs

VECTOR_SETS = ("avx512_bf16", "avx512", "avx2", "baseline")
INSTRUCTION_SETS = ("amx_bf16", *VECTOR_SETS)
"""Those that a library lists, best first. amx_bf16 is avx512_bf16 but for products of bfloat16."""

EMULATED_AMX = "emulated_amx"
"""Has the products of amx_bf16, in emulated registers: on any machine, and on no list."""


@dataclass(frozen=True)
class Kernels:
    """A library, and what a session asks of it.

    Attributes:
        instruction_set: One of those that the machine has.
        threads: Of the session.
        arena: Whether ONNX Runtime cuts tensors from large blocks of its own.
        domains: Those whose nodes run on kernels; None for what the library takes by itself.
    """

    library: Path
    instruction_set: str
    compute_type: str = "float32"
    threads: int = 1
    arena: bool = True
    domains: str | None = None

    def options(self) -> ort.SessionOptions:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.enable_cpu_mem_arena = self.arena
        options.log_severity_level = 4  # an error is raised, and need not be logged as well
        options.add_session_config_entry("moh.instruction_set", self.instruction_set)
        options.add_session_config_entry("moh.compute_type", self.compute_type)
        if self.domains is not None:
            options.add_session_config_entry("moh.domains", self.domains)
        options.register_custom_ops_library(str(self.library))
        return options

    def placed(self, model: onnx.ModelProto) -> tuple[ort.InferenceSession, dict[str, LayerImpl]]:
        """Return a session, and what runs each node of our operators, by its own account."""
        nodes = [n.name for n in model.graph.node if is_moh_op(n.domain, n.op_type)]
        options = self.options()
        with tempfile.TemporaryDirectory() as scratch:
            placement = Placement(nodes, Path(scratch))
            placement.prepare(options)
            session = ort.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            return session, placement.read(session)

    def session(self, model: onnx.ModelProto) -> ort.InferenceSession:
        """Return a session in which a kernel runs every node of our operators."""
        session, runs = self.placed(model)
        assert set(runs.values()) <= {"kernel"}, runs
        return session

    def run(self, case: Case) -> list[np.ndarray]:
        return run_session(self.session(case_model(case)), case)


def kernels_of(instruction_set: str) -> Kernels:
    """Return the installation's kernels, or skip where there are none or not for this machine."""
    library = required_library()
    usable = (*ort_kernels.instruction_sets(library), EMULATED_AMX)
    if instruction_set not in usable:
        pytest.skip(f"this machine has no {instruction_set}")
    return Kernels(library, instruction_set)


def run_session(session: ort.InferenceSession, case: Case) -> list[np.ndarray]:
    arrays = named_inputs(case)  # An OrtValue does not own the array that it was made from.
    values = {name: to_ort(array) for name, array in arrays.items()}
    return [from_ort(value) for value in session.run_with_ort_values(None, values)]


def with_inputs(case: Case, **arrays: np.ndarray) -> Case:
    """Return the case with other arrays for the inputs of these names."""
    names = (given.name for given in OPS[case.op].inputs)
    pairs = zip(names, case.inputs(), strict=False)
    inputs = tuple(arrays.get(name, array) for name, array in pairs)
    return replace(case, build=lambda _: inputs)


def with_constants(case: Case, **arrays: np.ndarray) -> onnx.ModelProto:
    """Return the model of a case whose inputs of these names are constants."""
    model = case_model(case)
    given = [item for item in model.graph.input if item.name not in arrays]
    del model.graph.input[:]
    model.graph.input.extend(given)
    for name, array in arrays.items():
        packed = array.dtype == np.uint8
        element = onnx.TensorProto.UINT8 if packed else ELEMENT_TYPES[case.dtype]
        tensor = onnx.helper.make_tensor(name, element, array.shape, array.tobytes(), raw=True)
        model.graph.initializer.append(tensor)
    return model


def run_with_constants(kernels: Kernels, case: Case, *names: str) -> np.ndarray:
    """Return what a session gives whose inputs of these names are constants, twice the same."""
    arrays = named_inputs(case)
    session = kernels.session(with_constants(case, **{name: arrays.pop(name) for name in names}))
    assert {given.name for given in session.get_inputs()} == set(arrays)
    values = {name: to_ort(array) for name, array in arrays.items()}
    first, second = (from_ort(session.run_with_ort_values(None, values)[0]) for _ in range(2))
    assert first.tobytes() == second.tobytes()
    return first


def memory_for(case: Case, value: float) -> np.ndarray:
    """Return memory of exactly the size of the output of `case`, filled with `value`."""
    output = OPS[case.op].shape_rule(case.input_types(), case.attributes)[0]
    return np.full(output.shape, value, numpy_dtype(case.dtype))


def run_into(memory: np.ndarray, session: ort.InferenceSession, case: Case) -> np.ndarray:
    """Let the session write its output to `memory`, and return that."""
    arrays = named_inputs(case)
    values = {name: to_ort(array) for name, array in arrays.items()}
    target = to_ort(memory)
    binding = session.io_binding()
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    binding.bind_ortvalue_output(session.get_outputs()[0].name, target)
    session.run_with_iobinding(binding)
    assert memory.size == 0 or binding.get_outputs()[0].data_ptr() == memory.ctypes.data
    return memory


def assert_right(case: Case, outputs: list[np.ndarray]) -> None:
    problem = find_mismatch(case, outputs)
    assert problem is None, problem
