"""Bisect a package: find where it diverges, why, and which nodes have to be in float32."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from moh_deploy.errors import ConfigError
from moh_deploy.graph.float32_form import LOW, check_reference
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.lowered_package import check_float32
from moh_deploy.runtime.variants import PackageVariants
from moh_deploy.system.progress import Progress
from moh_deploy.validate.bisection.experiments import Experiments
from moh_deploy.validate.bisection.locate import Cause, locate
from moh_deploy.validate.bisection.repair import RepairJob
from moh_deploy.validate.bisection.report import BisectReport


def check_packages(
    package: OnnxPackage,
    reference: OnnxPackage | None,
    output: Path | None,
    to: str | None,
    inputs: Sequence[Path | str],
) -> None:
    if to is not None:
        check_float32(package)
        if reference is not None:
            raise ConfigError("to lowers the package, which is its own reference: give one of two.")
        return
    if reference is not None:
        check_reference(package, reference)
    precision = package.manifest.precision
    # A float32 package cannot be its own reference: it may be what is wrong.
    if inputs and precision not in LOW and reference is None:
        raise ConfigError(
            f"{package.root} is in {precision}: what it should compute on other inputs than the"
            " recorded ones is not known.",
            hint="Give a package that is right with --reference.",
        )
    if output is not None and precision not in LOW:
        raise ConfigError(
            f"{package.root} is in {precision}: there is nothing to put into float32, so no"
            " repaired package to write.",
            hint="Leave --output out: bisect says where the package diverges.",
        )


def find_and_repair(
    runs: Experiments, folder: Path, output: Path | None, most: int, progress: Progress
) -> BisectReport:
    """Find where a package diverges, and the nodes that need float32.

    Args:
        folder: A directory to make packages in.
        output: Where to write the repaired package; None for not at all.
        most: How many packages may be made and run.

    Raises:
        ValidationError: There are no recorded runs, or they do not tell.
    """
    with progress.step("comparing with the recorded runs"):
        if not runs.vectors or runs.cannot_tell:
            runs.parity.raise_if_unequal()
        report = BisectReport(
            runs.package.root,
            runs.precision,
            runs.parity.reference,
            runs.reasons,
            target=runs.target,
            passes_verify=runs.parity.equal,
        )
    if not report.reasons:
        return report
    with progress.step("finding where it diverges"):
        located = locate(runs)
    report = replace(
        report,
        divergence=located.divergence,
        errors=located.errors,
        notes=_notes(runs, located.divergence.cause),
    )
    # A repair puts nodes into float32: in a float32 package all of them are there already.
    if runs.float32 is None:
        return report
    job = RepairJob(runs, located, folder / "trials", output, most, progress.step)
    repair, why_not = job.look()
    return replace(report, repair=repair, why_no_repair=why_not)


def _notes(runs: Experiments, cause: Cause) -> tuple[str, ...]:
    notes = []
    if cause in ("kernel", "optimisation") and runs.target is not None and runs.parity.equal:
        notes.append(
            "`verify` passes here: beside a target as small as this, rounding of float32 in another"
            " order may be all that is wrong."
        )
    if runs.parity.equal and runs.target is None and runs.precision == "float16":
        notes.append(
            "`verify` passes here: ONNX Runtime on the CPU computes runs of float16 operators in"
            " float32, and rounds at their ends. This is with every result rounded, as on GPUs."
        )
    if not runs.plain.gates and runs.package.manifest.layers:
        why = PackageVariants(runs.package).why_not_forced()
        notes.append(f"The reference gates were not fed to the model: {why}.")
    return tuple(notes)
