"""Builds TensorRT engines of small models on a GPU, runs them, and compares what they compute.

    make test-trt            or: python -m tests.gpu.engines [--backend tensorrt-rtx]

For each form of model (tests/cuda/trt/packages.py) and precision: an engine, every layer by a
kernel, its outputs compared with the recorded runs of the original model; and one of what is timed
as the fastest. TensorRT has to have timed the kernels' tactics with gates that mean something: the
plugin says so in the log of the build. Needs moh-deploy with its
plugin library (`make plugin`), TensorRT, and a GPU. The exit code is 1 if anything is wrong.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import moh_deploy
from moh_deploy.errors import MoHDeployError
from tests.cuda.trt.packages import FORMS, export

PRECISIONS = ("fp32", "fp16", "bf16")
# Those with a MoHAttention of which there is more than one tactic to time.
TIMED_FORMS = ("dit", "llama")
_TIMED = "of all gates open, not with its input"


def main() -> int:
    options = _parser().parse_args()
    problems = 0
    with tempfile.TemporaryDirectory(prefix="moh-engines-") as folder:
        for name, problem in _results(Path(folder), options.backend, options.plugin):
            problems += problem is not None
            print(f"{name}: {problem or 'equal'}", flush=True)
    print(f"{problems} problems")
    return 1 if problems else 0


def _results(folder: Path, backend: str, plugin: Path | None) -> Iterator[tuple[str, str | None]]:
    for form, precision in product(FORMS, PRECISIONS):
        work = folder / f"{form}-{precision}"
        work.mkdir()
        try:
            package = export(FORMS[form], work)
            yield work.name, _problem(package, work, backend, precision, plugin)
            if backend == "tensorrt":
                if form in TIMED_FORMS:
                    yield f"{work.name}, gates while timed", _gates_problem(work / "engine")
                yield f"{work.name}, fastest", _choice_problem(package, work, precision, plugin)
        except MoHDeployError as error:
            yield work.name, f"{error.message} {error.hint or ''}"


def _problem(
    package: Path, work: Path, backend: str, precision: str, plugin: Path | None
) -> str | None:
    engine = work / "engine"
    moh_deploy.build(
        package,
        backend=backend,
        output=engine,
        precision=precision,
        plugin=plugin,
        require_kernels=True,
    )
    report = moh_deploy.verify(engine, package=package)
    return "; ".join(report.reasons) or None


def _gates_problem(engine: Path) -> str | None:
    """Without that line tactics were timed on gates of whatever was in the memory."""
    if _TIMED in (engine / "build.log").read_text(encoding="utf-8", errors="replace"):
        return None
    return f"build.log lacks '{_TIMED}': the plugin was not asked for tactics as TensorRT documents"


def _choice_problem(package: Path, work: Path, precision: str, plugin: Path | None) -> str | None:
    """Of candidates that were timed, on this GPU, one is chosen, and computes the same."""
    engine = work / "fastest"
    report = moh_deploy.build(
        package, backend="tensorrt", output=engine, precision=precision, plugin=plugin
    )
    untimed = [layer.decision or "" for layer in report.layers if not layer.times_ms]
    reasons = moh_deploy.verify(engine, package=package).reasons
    return "; ".join((*untimed, *reasons)) or None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.engines")
    parser.add_argument("--backend", default="tensorrt", choices=["tensorrt", "tensorrt-rtx"])
    parser.add_argument("--plugin", type=Path, help="a plugin library other than the package's")
    return parser


if __name__ == "__main__":
    sys.exit(main())
