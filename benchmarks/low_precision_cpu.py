"""One model in each of its precisions and runtimes: time, error and routing beside each other.

Packages of the same model (float32, and what `moh-deploy precision` made of it) run in ONNX Runtime
and in OpenVINO, on our kernels, on one recorded run of the first. A plain export of it is the peer,
as OpenVINO and ONNX Runtime round it by themselves (low_precision_peers.py). All take turns in one
process. A flip is a token that chose other heads than in the recorded run of the original; it is
clear where the scores were further apart than 0.01.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from interleaving import interleaved_figures
from low_precision_peers import Peer, plain_peers
from printing import environment, print_results, versions
from process_cost import load_average
from rich.table import Table
from run_options import positive

from moh_deploy.errors import MoHDeployError
from moh_deploy.package import OnnxPackage, VectorSet
from moh_deploy.runtime.base import Runner, Runtime, Variant
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.system.npz import Array
from moh_deploy.validate.reference.calibration import calibration_runs

CLEAR = 1e-2
RUNTIMES: tuple[Runtime, ...] = ("onnxruntime", "openvino")


@dataclass(frozen=True)
class Row:
    """What one candidate took and gave.

    Attributes:
        kernels: The instruction set of our kernels, which all ran on; None for a peer.
        ms: Of CPU time on one thread, by the clock on the wall on several.
        max_error: Largest error of the first output, as a share of its largest value.
        flips: Tokens with other heads, of `tokens`; None where gates are not returned.
    """

    model: str
    runtime: str
    kernels: str | None
    ms: float
    max_error: float
    flips: int | None
    clear_flips: int | None
    tokens: int


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    start_load = load_average()
    try:
        with tempfile.TemporaryDirectory(prefix="moh-deploy-") as scratch:
            rows = _measured(options, Path(scratch))
    except MoHDeployError as failure:
        print(failure, file=sys.stderr)
        return 1
    about = {
        **environment(start_load),
        **versions(("moh-deploy", "onnxruntime", "openvino", "nncf")),
    }
    print_results(
        about, [asdict(row) for row in rows], [_table(rows)], as_json=options.json, width=120
    )
    return 0


def _measured(options: argparse.Namespace, scratch: Path) -> list[Row]:
    packages = [OnnxPackage.open(root) for root in options.packages]
    recorded = packages[0].vectors[options.run]
    calls: list[Callable[[], object]] = []
    rows: list[Row] = []
    for root, package in zip(options.packages, packages, strict=True):
        for runtime in RUNTIMES:
            # ONNX Runtime on the CPU emulates bfloat16: that has no time of its own.
            if runtime == "onnxruntime" and package.manifest.precision == "bfloat16":
                continue
            variant = Variant(
                runtime=runtime, kernels="require", threads=options.threads, spins=False
            )
            with open_runner(package, variant.returning(package.gate_names)) as runner:
                rows.append(_row(str(root), runtime, package, recorded, runner))
            calls.append(open_runner(package, variant).bound(recorded.inputs))
    for peer in _peers(options, packages[0], recorded, scratch):
        error = _error(recorded, packages[0], peer.output())
        rows.append(Row(peer.name, peer.runtime, None, 0.0, error, None, None, 0))
        calls.append(peer.run)
    figures = interleaved_figures(calls, threads=options.threads, rounds=options.repeats)
    return [Row(**{**asdict(row), "ms": ms}) for row, ms in zip(rows, figures, strict=True)]


def _peers(
    options: argparse.Namespace, package: OnnxPackage, recorded: VectorSet, scratch: Path
) -> Iterable[Peer]:
    if options.plain is None:
        return ()
    # On what is not measured, as static scales of ours are.
    calibration = [run.inputs for run in package.vectors if run is not recorded]
    if options.calibration:
        calibration = calibration_runs(package, options.calibration, ())
    return plain_peers(options.plain, recorded.inputs, calibration, options.threads, scratch)


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
    kernels = runner.describe().kernels.instruction_set
    return Row(name, runtime, kernels, 0.0, error, flips, clear, tokens)


def _error(recorded: VectorSet, package: OnnxPackage, got: Array) -> float:
    expected = recorded.outputs[package.manifest.outputs[0].name].astype(np.float64)
    return float(np.abs(got - expected).max() / (np.abs(expected).max() or 1.0))


def _table(rows: Sequence[Row]) -> Table:
    table = Table("model", "runtime", "kernels", "ms", "max error", "flips", "clear", "tokens")
    for row in rows:
        flips = ("-", "-", "-") if row.flips is None else (row.flips, row.clear_flips, row.tokens)
        figures = (f"{row.ms:.4g}", f"{row.max_error:.2g}", *map(str, flips))
        table.add_row(row.model, row.runtime, row.kernels or "-", *figures)
    return table


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("packages", nargs="+", type=Path, metavar="DIR", help="packages of one model")
    add("--plain", type=Path, metavar="FILE.onnx", help="its plain export, the peer")
    add(
        "--calibration",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE.npz",
        help="what NNCF calibrates on; default: the other recorded runs",
    )
    add("--run", type=int, default=0, metavar="N", help="which recorded run; default: the first")
    add("--threads", type=positive, default=1, metavar="N")
    add("--repeats", type=positive, default=9, metavar="N", help="rounds; default: 9")
    add("--json", action="store_true", help="print a list of rows instead of a table")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
