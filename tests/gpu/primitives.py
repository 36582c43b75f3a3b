"""Records what a GPU makes of each primitive, for the emulators to be compared with ever after."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import torch

from tests.gpu.build import ROOT
from tests.gpu.stored_cases import CASES

GOLDEN = ROOT / "tests" / "cuda" / "golden" / "primitives.npz"


def record(library: ctypes.CDLL, path: Path = GOLDEN, *, device: str = "cuda") -> int:
    """Run every primitive on its stored inputs and write inputs and outputs.

    Args:
        device: Where the library's kernels work: `cpu` for the emulator, to rehearse this.

    Returns:
        How many primitives there are.
    """
    sizes = _listed(library)
    recorded: dict[str, np.ndarray] = {}
    with np.load(CASES) as stored:
        for name, (_, words_out) in sizes.items():
            words = stored[f"primitive/{name}"]
            recorded[f"{name}/in"] = words
            recorded[f"{name}/out"] = _run(library, name, words, words_out, device)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **recorded)
    return len(sizes)


def _listed(library: ctypes.CDLL) -> dict[str, tuple[int, int]]:
    lines = library.moh_cuda_conformance_list().decode().splitlines()
    return {name: (int(first), int(second)) for name, first, second in map(str.split, lines)}


def _run(
    library: ctypes.CDLL, name: str, words: np.ndarray, words_out: int, device: str
) -> np.ndarray:
    given = torch.from_numpy(np.ascontiguousarray(words).view(np.int32)).to(device)
    out = torch.full((len(words), words_out), -559038737, dtype=torch.int32, device=device)
    status = library.moh_cuda_conformance(
        name.encode(), given.data_ptr(), given.nbytes, out.data_ptr(), out.nbytes, None
    )
    if device == "cuda":
        torch.cuda.synchronize()
    if status:
        raise RuntimeError(f"{name}: cudaError {status}")
    return out.cpu().numpy().view(np.uint32)
