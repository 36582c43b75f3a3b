"""One model in each of its precisions and runtimes: time, error and routing beside each other.

Packages of the same model (float32, and what `moh-deploy precision` made of it) run in ONNX Runtime
and in OpenVINO, on one recorded run of the first; a plain export of it runs in OpenVINO by its own
rounding, as a peer. All take turns in one process. A flip is a token that chose other heads than in
the recorded run of the original; it is clear where the scores were further apart than 0.01.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from interleaving import interleaved_figures
from printing import environment, print_results, versions
from process_cost import load_average
from rich.table import Table
from run_options import positive

from moh_deploy.errors import MoHDeployError
from moh_deploy.package import OnnxPackage, VectorSet
from moh_deploy.runtime.base import Runner, Runtime, Variant
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.system.npz import Array

CLEAR = 1e-2
RUNTIMES: tuple[Runtime, ...] = ("onnxruntime", "openvino")


@dataclass(frozen=True)
class Row:
    """What one contestant took and gave.

    Attributes:
        ms: Of CPU time on one thread, by the clock on the wall on several.
        max_error: Largest error of the first output, as a share of its largest value.
        flips: Tokens with other heads, of `tokens`; None where gates are not returned.
    """

    model: str
    runtime: str
    ms: float
    max_error: float
    flips: int | None
    clear_flips: int | None
    tokens: int


class Plain:
    """The plain export in OpenVINO, rounded by its hint: what a user would pick instead."""

    def __init__(self, path: Path, inputs: Mapping[str, Array], hint: str, threads: int) -> None:
        import openvino

        core = openvino.Core()
        model = core.read_model(path)
        names = [one.any_name for one in model.inputs]
        self._feeds = dict(zip(names, inputs.values(), strict=True))
        model.reshape({name: list(one.shape) for name, one in self._feeds.items()})
        settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads}
        compiled = core.compile_model(model, "CPU", {**settings, "PERFORMANCE_HINT": "LATENCY"})
        self._request = compiled.create_infer_request()

    def run(self) -> object:
        return self._request.infer(self._feeds, share_inputs=True, share_outputs=True)

    def output(self) -> Array:
        self.run()
        return np.array(self._request.get_output_tensor(0).data)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    start_load = load_average()
    try:
        rows = _measured(options)
    except MoHDeployError as failure:
        print(failure, file=sys.stderr)
        return 1
    about = {**environment(start_load), **versions(("moh-deploy", "onnxruntime", "openvino"))}
    print_results(
        about, [asdict(one) for one in rows], [_table(rows)], as_json=options.json, width=120
    )
    return 0


def _measured(options: argparse.Namespace) -> list[Row]:
    packages = [OnnxPackage.open(root) for root in options.packages]
    recorded = packages[0].vectors[options.run]
    calls: list[Callable[[], object]] = []
    rows: list[Row] = []
    for root, package in zip(options.packages, packages, strict=True):
        for runtime in RUNTIMES:
            # ONNX Runtime on the CPU emulates bfloat16: that has no time of its own.
            if runtime == "onnxruntime" and package.manifest.precision == "bfloat16":
                continue
            variant = Variant(runtime=runtime, threads=options.threads)
            with open_runner(package, variant.returning(package.gate_names)) as runner:
                rows.append(_row(str(root), runtime, package, recorded, runner))
            calls.append(open_runner(package, variant).bound(recorded.inputs))
    for hint in ("f32", "bf16") if options.plain else ():
        plain = Plain(options.plain, recorded.inputs, hint, options.threads)
        error = _error(recorded, packages[0], plain.output())
        rows.append(Row(f"{options.plain}, {hint}", "openvino", 0.0, error, None, None, 0))
        calls.append(plain.run)
    figures = interleaved_figures(calls, threads=options.threads, rounds=options.repeats)
    return [Row(**{**asdict(row), "ms": ms}) for row, ms in zip(rows, figures, strict=True)]


def _row(name: str, runtime: str, package: OnnxPackage, recorded: VectorSet, runner: Runner) -> Row:
    results = runner.run(recorded.inputs)
    tokens = flips = clear = 0
    for gates, margins, found in zip(
        recorded.gates, recorded.margins, package.gate_names, strict=True
    ):
        open_now = np.asarray(results[found], np.float32).reshape(gates.shape) != 0
        changed = (open_now != (gates != 0)).any(axis=-1)  # [B, S]
        tokens += changed.size
        flips += int(changed.sum())
        clear += int((changed & (margins.reshape(changed.shape) > CLEAR)).sum())
    error = _error(recorded, package, results[package.manifest.outputs[0].name])
    return Row(name, runtime, 0.0, error, flips, clear, tokens)


def _error(recorded: VectorSet, package: OnnxPackage, got: Array) -> float:
    expected = recorded.outputs[package.manifest.outputs[0].name].astype(np.float64)
    return float(np.abs(got - expected).max() / max(1.0, np.abs(expected).max()))


def _table(rows: Sequence[Row]) -> Table:
    table = Table("model", "runtime", "ms", "max error", "flips", "clear", "tokens")
    for row in rows:
        flips = ("-", "-", "-") if row.flips is None else (row.flips, row.clear_flips, row.tokens)
        figures = (f"{row.ms:.4g}", f"{row.max_error:.2g}", *map(str, flips))
        table.add_row(row.model, row.runtime, *figures)
    return table


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("packages", nargs="+", type=Path, metavar="DIR", help="packages of one model")
    add("--plain", type=Path, metavar="FILE.onnx", help="its plain export, for OpenVINO")
    add("--run", type=int, default=0, metavar="N", help="which recorded run; default: the first")
    add("--threads", type=positive, default=1, metavar="N")
    add("--repeats", type=positive, default=9, metavar="N", help="rounds; default: 9")
    add("--json", action="store_true", help="print a list of rows instead of a table")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
