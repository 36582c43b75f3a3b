"""Writes what a machine with a GPU is to bring along, where moh-deploy is installed:

    python -m tests.gpu.prepare [--plugin FILE]

the contract cases with their references, what the primitives are tried on, and, with a built
plugin library (`make plugin`), that and the harness that drives it.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np

from moh_deploy.ops import OPS
from moh_deploy.ops.cases import OP_TOLERANCES, Case, op_tolerance_for
from moh_deploy.system.staging import staged_file
from tests.cuda import conformance
from tests.gpu.plugins import HARNESS, PLUGIN
from tests.gpu.stored_cases import CASES
from tests.ops.cases import OP_CASES

GPU_OPS = ("MoHRouter", "MoHAttention", "MoHAggregatedAttention")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.prepare")
    parser.add_argument("--plugin", type=Path, help="a built plugin library to bring along")
    plugin = parser.parse_args().plugin
    print(f"{prepare()} cases in {CASES}")
    if plugin is not None:
        prepare_plugin(plugin)
        print(f"{PLUGIN} and {HARNESS}")


def prepare(path: Path = CASES) -> int:
    """Write the file and return how many cases are in it."""
    arrays: dict[str, np.ndarray] = {}
    headers = []
    for case in (case for op in GPU_OPS for case in OP_CASES[op]):
        headers.append(_store(case, len(headers), arrays))
    for name in conformance.PRIMITIVES:
        words = conformance.inputs(name)
        arrays[f"primitive/{name}/in"] = words
        arrays[f"primitive/{name}/out"] = conformance.outputs(name, words)
    texts = {
        "headers": json.dumps(headers),
        "primitives": json.dumps({n: p.ulps for n, p in conformance.PRIMITIVES.items()}),
        "tolerances": json.dumps({dtype: _drawn_tolerance(dtype) for dtype in OP_TOLERANCES}),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with staged_file(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **texts, **arrays)
    return len(headers)


def prepare_plugin(library: Path) -> None:
    """Put a plugin library, and the harness that calls it, where the tests look for them."""
    from tests.cuda.trt import builds

    PLUGIN.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(library, PLUGIN)
    shutil.copy(builds.harness(), HARNESS)


def _drawn_tolerance(dtype: str) -> list[float]:
    """Of attention to normally distributed numbers, whose scores are of order 1."""
    rule = op_tolerance_for(dtype, score_bound=8.0)
    return [rule.absolute, rule.relative]


def _store(case: Case, index: int, arrays: dict[str, np.ndarray]) -> dict[str, object]:
    inputs = case.inputs()
    (reference,) = OPS[case.op].reference(inputs, case.attributes)
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
        "tolerance": [case.tolerance.absolute, case.tolerance.relative],
    }


if __name__ == "__main__":
    main()
