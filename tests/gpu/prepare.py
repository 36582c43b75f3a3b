"""Writes the contract cases, and what the primitives are tried on, for a machine with a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from moh_deploy.ops import OPS
from moh_deploy.ops.cases import Case
from moh_deploy.ops.tolerances import op_tolerance_for
from moh_deploy.system.staging import staged_file
from tests.cuda import conformance
from tests.gpu.stored_cases import CASES
from tests.ops.cases import OP_CASES

GPU_OPS = ("MoHRouter", "MoHAttention", "MoHAggregatedAttention")


def prepare(path: Path = CASES) -> int:
    """Write the file and return how many cases are in it."""
    arrays: dict[str, np.ndarray] = {}
    headers = []
    for case in (case for op in GPU_OPS for case in OP_CASES[op]):
        headers.append(_store(case, len(headers), arrays))
    for name in conformance.PRIMITIVES:
        arrays[f"primitive/{name}"] = conformance.inputs(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with staged_file(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, headers=json.dumps(headers), **arrays)
    return len(headers)


def _store(case: Case, index: int, arrays: dict[str, np.ndarray]) -> dict[str, object]:
    inputs = case.inputs()
    (reference,) = OPS[case.op].reference(inputs, case.attributes)
    rule = op_tolerance_for(case.dtype, score_bound=case.score_bound)
    arrays[f"{index}/reference"] = np.asarray(reference, np.float64)
    tensors: list[list[object] | None] = []
    for position, array in enumerate(inputs):
        if array is None:
            tensors.append(None)
            continue
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        arrays[f"{index}/{position}"] = flat
        tensors.append([list(array.shape), array.dtype.name])
    return {
        "name": str(case),
        "op": case.op,
        "dtype": case.dtype,
        "attributes": dict(case.attributes),
        "tensors": tensors,
        "absolute": rule.absolute,
        "relative": rule.relative,
    }


if __name__ == "__main__":
    print(f"{prepare()} cases in {CASES}")
