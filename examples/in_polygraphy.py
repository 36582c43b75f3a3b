"""Compare what runs here with the recorded PyTorch reference, in Polygraphy's Comparator.

    python examples/in_polygraphy.py build/model                # function bodies and the package
    python examples/in_polygraphy.py build/engine build/model   # an engine, on the first GPU

An engine runs by Polygraphy's `TrtRunner`, and the GPU's time is printed: by its events, without
copies. Needs `pip install 'moh-deploy[polygraphy]'`. Ends with 1 if an output differs by more than
`--tolerance` (1e-4), absolute and relative.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from polygraphy.comparator import Comparator, SimpleCompareFunc

import moh_deploy
from moh_deploy.errors import ConfigError


def main(root: Path, package: Path | None, tolerance: float) -> int:
    """Run all candidates on the recorded inputs, and compare each with the recorded outputs."""
    runs = list(moh_deploy.OnnxPackage.open(package or root).vectors)
    make = moh_deploy.polygraphy_runner
    if package is None:
        bodies = make(root, kernels="off", optimize=False, name="function bodies")
        runners = [bodies, make(root, name="package")]
    else:
        runners = [make(root, name="engine")]
        with moh_deploy.Engine(root) as engine:
            runs = [run for run in runs if timed(engine, run.inputs)]
    results = Comparator.run(runners, data_loader=[run.inputs for run in runs])
    results.add([dict(run.outputs) for run in runs], runner_name="PyTorch, recorded")
    by_element = SimpleCompareFunc(atol=tolerance, rtol=tolerance, check_error_stat="max")
    pairs = [(index, len(runners)) for index in range(len(runners))]
    found = Comparator.compare_accuracy(results, compare_func=by_element, comparisons=pairs)
    return 0 if runs and bool(found) else 1


def timed(engine: moh_deploy.Engine, inputs: dict[str, np.ndarray]) -> bool:
    """Print the GPU's time; return whether the engine was built for these sizes."""
    try:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
        print(f"GPU: {engine.gpu_ms(inputs):.4f} ms for {shapes}")
    except ConfigError as error:
        print(f"left out: {error.message}")
        return False
    return True


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="package or engine directory")
    parser.add_argument("package", type=Path, nargs="?", help="what an engine was built from")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    given = parser.parse_args()
    sys.exit(main(given.root, given.package, given.tolerance))
