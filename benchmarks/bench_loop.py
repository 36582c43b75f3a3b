"""Whether `moh-deploy bench` measures what a plain loop around ONNX Runtime's `run` measures.

Both time the same session on the same inputs, in turns: some seconds of one, then of the other.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import onnxruntime as ort
from process_cost import load_average
from rich.console import Console
from rich.table import Table

from moh_deploy.package import OnnxPackage
from moh_deploy.perf.bench.candidate import runs_timer
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.system.npz import Array
from moh_deploy.validate.reference.input_sets import sized_inputs


@dataclass
class Samples:
    """Milliseconds of runs: on the wall, and in CPU time."""

    wall_ms: list[float]
    cpu_ms: list[float]


def main() -> None:
    arguments = _arguments()
    package = OnnxPackage.open(arguments.package)
    runner = open_runner(package, Variant(kernels="require", threads=arguments.threads))
    sizes = dict(text.split("=") for text in arguments.size)
    (inputs,) = sized_inputs(package, {name: [int(size)] for name, size in sizes.items()})
    seconds = arguments.seconds
    timer = runs_timer(seconds, 0.0, threads=arguments.threads)
    bench, loop = Samples([], []), Samples([], [])
    for _ in range(arguments.turns):
        found = timer({"one": runner.bound(inputs.inputs)})["one"]
        bench.wall_ms += found.wall_ms
        bench.cpu_ms += found.cpu_ms
        _plain_loop(runner.session, inputs.inputs, seconds, loop)
    Console().print(
        _table(bench, loop, f"{package.root}, {inputs.sizes}, {arguments.threads} threads")
    )


def _plain_loop(
    session: ort.InferenceSession, inputs: dict[str, Array], seconds: float, samples: Samples
) -> None:
    """Run as users do: arrays in, arrays out."""
    session.run(None, inputs)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        cpu, start = time.process_time(), time.perf_counter()
        session.run(None, inputs)
        samples.wall_ms.append((time.perf_counter() - start) * 1e3)
        samples.cpu_ms.append((time.process_time() - cpu) * 1e3)


def _table(bench: Samples, loop: Samples, what: str) -> Table:
    title = f"{what}; ONNX Runtime {ort.__version__}, load average {load_average()}"
    table = Table("figure", "bench", "plain loop", "ratio", title=title, title_justify="left")
    figures: dict[str, Callable[[Samples], float]] = {
        "runs": lambda item: len(item.wall_ms),
        "wall p50, ms": lambda item: median(item.wall_ms),
        "CPU p50, ms": lambda item: median(item.cpu_ms),
    }
    for name, figure in figures.items():
        values = figure(bench), figure(loop)
        table.add_row(name, *(f"{value:.4g}" for value in values), f"{values[0] / values[1]:.3f}")
    return table


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", nargs="*", default=[], metavar="NAME=N")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a turn")
    parser.add_argument("--turns", type=int, default=8)
    return parser.parse_args()


if __name__ == "__main__":
    main()
