"""Run packages in the ONNX Runtime that is installed, and compare with their first recorded run.

    python tools/check_runtime.py build/model ... [--kernels moh_deploy/native/libmoh_ort_cpu.so]

It needs numpy and onnxruntime alone, of any version: `moh-deploy verify` does much more, with those
that it supports. Exit 1 if a package does not load or run, or is off by more than 1e-4 (in half
precision 2e-2) of its largest value, at least of 1.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("packages", nargs="+", type=Path, metavar="DIR")
    parser.add_argument("--kernels", type=Path, metavar="FILE", help="default: function bodies")
    options = parser.parse_args()
    problems = [
        problem for root in options.packages for problem in _problems(root, options.kernels)
    ]
    for problem in problems:
        print(problem)
    how = "function bodies" if options.kernels is None else "kernels"
    print(f"ONNX Runtime {ort.__version__}, {how}: {len(options.packages)} packages,", end=" ")
    print(f"{len(problems)} problems")
    return 1 if problems else 0


def _problems(root: Path, kernels: Path | None) -> Iterator[str]:
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    if kernels is not None:
        settings.register_custom_ops_library(str(kernels))
    recorded = np.load(root / "vectors.npz")
    try:
        session = ort.InferenceSession(
            str(root / "model.onnx"), settings, providers=["CPUExecutionProvider"]
        )
        inputs = {item.name: recorded[f"0/inputs/{item.name}"] for item in session.get_inputs()}
        results = session.run(None, inputs)
    except Exception as error:  # Each version has errors of its own.
        yield f"{root}: refused: {error}"
        return
    names = [output.name for output in session.get_outputs()]
    for name, got in zip(names, results, strict=True):
        problem = _difference(got, recorded[f"0/outputs/{name}"])
        if problem:
            yield f"{root}: output '{name}' {problem}"


def _difference(got: np.ndarray, expected: np.ndarray) -> str:
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return f"is {got.dtype} {list(got.shape)}, expected {expected.dtype} {list(expected.shape)}"
    if not np.issubdtype(got.dtype, np.floating):
        return "" if np.array_equal(got, expected) else "differs"
    reference = expected.astype(np.float64)
    limit = (1e-4 if got.dtype == np.float32 else 2e-2) * max(1.0, np.abs(reference).max(initial=0))
    error = np.abs(got - reference).max(initial=0)
    return "" if error <= limit else f"is off by {error:.3g}, allowed {limit:.3g}"


if __name__ == "__main__":
    sys.exit(main())
