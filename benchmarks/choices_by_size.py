"""A package at several sizes: as it is, with a choice for each range of them, beside the same
package with one choice for every layer.

All take turns in one process, on the same inputs. On one thread CPU time counts, on several wall
time. What the package computes in each way is `moh-deploy verify`'s matter.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from printing import environment, print_results, versions
from process_cost import load_average
from rich.table import Table

from moh_deploy.errors import MoHDeployError
from moh_deploy.graph.choose_layers import write_choices
from moh_deploy.package import (
    CHOICES,
    OnnxPackage,
    choice_text,
    choices_for,
    with_choices,
)
from moh_deploy.perf.choices_text import sizes_text
from moh_deploy.perf.timing import Stopwatch, ratio
from moh_deploy.perf.tune.layers import time_model
from moh_deploy.runtime.base import Variant
from moh_deploy.validate.reference.input_sets import input_sets

PACKAGES = ("moh-deploy", "onnxruntime")
AS_IT_IS = "package"


@dataclass(frozen=True)
class Row:
    """One way to run the package at one size.

    Attributes:
        sizes: Of the inputs.
        choice: `package`, or the one choice that every layer has: the nearest that it can.
        ms: Median.
        over_package: Time over the package's, the median of the rounds' ratios, and the interval
            that it is in with 95 % certainty.
    """

    sizes: str
    choice: str
    ms: float
    over_package: tuple[float, float, float]


def main() -> None:
    options = _options()
    start_load = load_average()
    try:
        package = OnnxPackage.open(options.package)
        rows = measured(package, options.inputs, options.threads, options.min_time)
    except MoHDeployError as error:
        sys.exit(str(error))
    choices = sorted({str(choice_text(layer)) for layer in package.manifest.layers})
    about = {
        **environment(start_load),
        **versions(PACKAGES),
        "package": f"{options.package}: {'; '.join(choices)}",
        "threads": str(options.threads),
    }
    print_results(
        about, [asdict(row) for row in rows], [_table(rows)], as_json=options.json, width=120
    )


def measured(
    package: OnnxPackage, inputs: Sequence[Path], threads: int, min_time: float
) -> list[Row]:
    """Time the package and its variants on each file of inputs."""
    sets = input_sets(package, inputs, [])
    with tempfile.TemporaryDirectory(prefix="moh-deploy-") as scratch:
        packages = {AS_IT_IS: package}
        for choice in _choices(package):
            layers = with_choices(package.manifest.layers, {"all": choice})
            packages[choice] = write_choices(package, layers, Path(scratch, choice))
        times = time_model(
            packages,
            [item.inputs for item in sets],
            measure=Stopwatch.for_threads(threads, min_time),
            variant=Variant(kernels="require", threads=threads),
        )
    return [
        Row(sizes_text(item.sizes), name, median(ms), _over(ms, samples[AS_IT_IS]))
        for item, samples in zip(sets, times, strict=True)
        for name, ms in samples.items()
    ]


def _choices(package: OnnxPackage) -> list[str]:
    possible = {choice for layer in package.manifest.layers for choice in choices_for(layer)}
    return [choice for choice in CHOICES if choice in possible]


def _over(ms: Sequence[float], as_it_is: Sequence[float]) -> tuple[float, float, float]:
    found = ratio(ms, as_it_is)
    return found.value, found.low, found.high


def _table(rows: Sequence[Row]) -> Table:
    table = Table(title="CPU ms on one thread, wall ms on several; and over the package's")
    for column in ("sizes", "choice", "ms", "over the package's", "95 %"):
        table.add_column(column)
    for row in rows:
        value, low, high = row.over_package
        table.add_row(
            row.sizes, row.choice, f"{row.ms:.3g}", f"{value:.3f}x", f"{low:.3f}x to {high:.3f}x"
        )
    return table


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", type=Path, help="as `moh-deploy tune` left it")
    parser.add_argument("--inputs", type=Path, nargs="+", required=True, metavar="FILE.npz")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--min-time", type=float, default=2.0, metavar="SECONDS")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
