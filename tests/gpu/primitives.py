"""Records what the device makes of each primitive: golden vectors to judge the emulators by."""

from pathlib import Path

import numpy as np
import torch

from tests.cuda import golden
from tests.cuda.golden import Recorded
from tests.gpu.kernels import Bench
from tests.gpu.report import write_whole
from tests.gpu.steps import Facts, Wrong


def primitive(bench: Bench, name: str, out: str) -> Facts:
    """Run a primitive, add it to the golden vectors, and compare it with its formula.

    Args:
        out: The folder of the golden vectors, which are whole after each primitive.

    Raises:
        Wrong: The device does not compute what the formula says: recorded all the same.
        OSError: The vectors cannot be written.
    """
    stored = bench.cases.primitive(name)
    got = run(bench, name, stored.words_in)
    _record(Path(out) / golden.GOLDEN.name, name, Recorded(stored.words_in, got))
    problem = golden.find_difference(name, got, stored.words_out, ulps=stored.ulps)
    if problem is not None:
        raise Wrong(problem)
    return {}


def run(bench: Bench, name: str, words: np.ndarray) -> np.ndarray:
    """Return what the device makes of a primitive's inputs."""
    functions, device = bench.library.functions, bench.device
    lines = functions.moh_cuda_conformance_list().decode().splitlines()
    words_out = {line.split()[0]: int(line.split()[2]) for line in lines}[name]
    given = torch.from_numpy(np.ascontiguousarray(words).view(np.int32)).to(device.kind)
    result = torch.full((len(words), words_out), -559038737, dtype=torch.int32, device=device.kind)
    status = functions.moh_cuda_conformance(
        name.encode(),
        given.data_ptr(),
        given.nbytes,
        result.data_ptr(),
        result.nbytes,
        device.stream(),
    )
    if status:
        raise RuntimeError(f"{name}: cudaError {status}")
    device.synchronize()
    return result.cpu().numpy().view(np.uint32)


def _record(path: Path, name: str, vectors: Recorded) -> None:
    recorded = golden.read(path) if path.exists() else {}
    problem = write_whole(path, golden.encode(recorded | {name: vectors}))
    if problem:
        raise OSError(problem)
