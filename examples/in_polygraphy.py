"""Run a package with kernels and without in Polygraphy's Comparator, on its recorded inputs.

    python examples/in_polygraphy.py build/model

Needs `pip install 'moh-deploy[polygraphy]'`. Ends with 1 if an output differs by more than 1e-4.
"""

from __future__ import annotations

import sys
from pathlib import Path

from polygraphy.comparator import Comparator, SimpleCompareFunc

import moh_deploy


def main(root: Path) -> int:
    """Compare function bodies, not optimised, with the package as it runs here."""
    runners = [
        moh_deploy.polygraphy_runner(root, kernels="off", optimize=False, name="function bodies"),
        moh_deploy.polygraphy_runner(root, name="package"),
    ]
    feeds = [one.inputs for one in moh_deploy.OnnxPackage.open(root).vectors]
    results = Comparator.run(runners, data_loader=feeds)
    by_element = SimpleCompareFunc(atol=1e-4, rtol=1e-4, check_error_stat="max")
    return 0 if bool(Comparator.compare_accuracy(results, compare_func=by_element)) else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
