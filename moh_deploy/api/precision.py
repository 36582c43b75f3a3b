"""Write a package again in float16 or bfloat16."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from moh_deploy.errors import ValidationError
from moh_deploy.graph.load_model import load_ir
from moh_deploy.graph.lower_precision.casts import IR_TYPES
from moh_deploy.graph.lower_precision.policy import LowType
from moh_deploy.package import OnnxPackage, PackageWriter, check_package_output
from moh_deploy.package.model_files import model_bytes, save_model
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.lowered_package import (
    check_float32,
    low_type,
    lower_model,
    lowered_manifest,
)
from moh_deploy.runtime.onnxruntime.value_ranges import largest_values
from moh_deploy.system.progress import Progress, SilentProgress
from moh_deploy.validate.parity_report import ParityReport
from moh_deploy.validate.precision_report import PrecisionReport
from moh_deploy.validate.recorded_parity import compare_recorded, proof_of, require_equal


def precision(
    package_dir: Path | str, *, to: str, output: Path | str, progress: Progress | None = None
) -> PrecisionReport:
    """Write a package whose graph says, by its types, where lower precision is used.

    Products run in the lower precision; the scores, softmax, choice and gates of routers, norms and
    other reductions stay in float32, and so does what left the range of float16 on the recorded
    inputs. Inputs and outputs of the model keep their dtypes.

    Args:
        package_dir: A package in float32.
        to: `float16` or `bfloat16`.
        output: The package directory to write.
        progress: What to report steps to.

    Raises:
        ConfigError: `to` is none of these, or the package is not in float32.
        PackageError: Not a package, or the output cannot be written.
        ValidationError: The package, or the new one, differs from the original model by more than
            the rule for its precision allows. Nothing is written.
    """
    progress, output = progress or SilentProgress(), Path(output)
    low = low_type(to)
    check_package_output(output)
    with progress.step("reading the package"):
        package = OnnxPackage.open(package_dir)
        check_float32(package)
    with progress.step("comparing the package with the original model"):
        # First in float32: an error that was there before must not be taken for one of rounding.
        require_equal(package)
    with progress.step("measuring how large values get"):
        largest = largest_values(package)
    with progress.step("lowering the precision"):
        model = load_ir(package)
        plan, layers = lower_model(model, package.manifest.layers, low, largest)
    # Compared as it was written, from disk, and published only if it is equal.
    with PackageWriter(output) as writer:
        with progress.step("writing the package"):
            save_model(model, package, writer.root)
            manifest = lowered_manifest(package, low, layers)
            manifest = writer.stage(manifest, package.vectors, package.corpus)
        with progress.step("comparing what was written with the original model"):
            staged = OnnxPackage.open(writer.root, staged=True)
            parity = _compare(staged, round_results=False)
            # Emulation rounds every result already: the second comparison would be the same.
            is_rounded = parity.kernels.emulated_dtype is not None
            rounded = parity if is_rounded else _compare(staged, round_results=True)
        written = writer.publish(replace(manifest, proof=proof_of(parity, package)))
    return PrecisionReport(
        package=written.root,
        precision=low,
        layers=layers,
        float32_reasons=Counter(_kind(reason, low) for reason in plan.float32.values()),
        lowered=sum(1 for node in model.graph if _computes_in(node, low)),
        bytes_before=model_bytes(package),
        bytes_after=model_bytes(written),
        parity=parity,
        rounded=rounded,
    )


def _compare(package: OnnxPackage, *, round_results: bool) -> ParityReport:
    """Compare the package with the original model.

    Args:
        round_results: As hardware computes, instead of as it runs here; see `Variant`.

    Raises:
        ValidationError: It is not equal.
    """
    report = compare_recorded(package, Variant(round_results=round_results))
    if report.failure is not None:
        how = " That is with every result rounded, as hardware does." if round_results else ""
        raise ValidationError(
            f"{report.failure.message}{how}",
            hint="`moh-deploy bisect DIR --to float16|bfloat16 --output DIR` finds the operators"
            " that have to stay in float32, and writes the package with them.",
        )
    return report


def _kind(reason: str, low: LowType) -> str:
    """Return the kind of a reason, to be counted: those that name a value are of one kind."""
    return f"values too large for {low}" if " reached " in reason else reason


def _computes_in(node: ir.Node, low: LowType) -> bool:
    # A Cast is the border of lower precision, not work in it.
    if node.op_type == "Cast":
        return False
    return any(value.dtype == IR_TYPES[low] for value in node.outputs)
