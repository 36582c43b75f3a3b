"""Write a package again in lower precision, proven within the rule for that."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import onnx_ir as ir

from moh_deploy.config.dtypes import FEW_BITS, PRECISIONS, LowerPrecision
from moh_deploy.errors import ValidationError
from moh_deploy.graph.load_model import load_ir
from moh_deploy.graph.precision_casts import IR_TYPES, narrow_caches
from moh_deploy.package import LayerInfo, Manifest, OnnxPackage, PackageWriter
from moh_deploy.package.cache_buffers import rounded_to, with_dtypes
from moh_deploy.package.writer import model_bytes
from moh_deploy.report.document import Block, Document, Table, Text
from moh_deploy.report.report import Report, count, si
from moh_deploy.runtime import lowered_package
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.onnxruntime.session import crash_of_plain_session
from moh_deploy.runtime.quantized_package import activation_ranges, quantized
from moh_deploy.system.npz import Array
from moh_deploy.system.progress import Progress
from moh_deploy.validate.compare.checks import Check, check_stored_weights
from moh_deploy.validate.compare.parity import compare_recorded, proof_of, require_equal
from moh_deploy.validate.compare.parity_report import (
    ParityReport,
    comparison_lines,
    comparison_section,
)

LOWER_PRECISIONS = get_args(LowerPrecision)[::-1]
"""What a float32 package can be written in, the shortest first: what `tune --within` tries."""

_HINTS = {
    False: "`moh-deploy bisect DIR --to float16|bfloat16 --output DIR` finds the operators that"
    " have to stay in float32, and writes the package with them.",
    True: "`moh-deploy bisect DIR --to int8 --output DIR` finds the products that have to stay in"
    " float32, and writes the package with them; --float32 NODE keeps one of them.",
}


@dataclass(frozen=True)
class PrecisionReport(Report):
    """One package in lower precision.

    Attributes:
        package: The directory that was written.
        float32_reasons: Why operators stay in float32, or weights have 8 bits instead of 4, to how
            many do for that reason.
        lowered: How many operators compute in the lower precision.
        bytes_before: Size of the float32 model with its weights.
        parity: The comparison of the package as it runs here with the original model.
        rounded: The same with every result rounded, as hardware does: ONNX Runtime on the CPU
            computes runs of float16 operators in float32. In few bits it is `parity`.
        calibration_runs: How many runs static scales are made of; 0 where scales are dynamic.
        weights: What comparing the stored weights found, in few bits.
        plain_session: How a session of ONNX Runtime without this library ends on a float16 model;
            None if it loads.
        beside: The comparison with the float32 package, where conditions, inputs or labels ask.
    """

    package: Path
    precision: str
    layers: tuple[LayerInfo, ...]
    float32_reasons: Mapping[str, int]
    lowered: int
    bytes_before: int
    bytes_after: int
    parity: ParityReport
    rounded: ParityReport
    calibration_runs: int = 0
    weights: Check | None = None
    plain_session: str | None = None
    beside: ParityReport | None = None

    def document(self) -> Document:
        """Return what it says."""
        kept = sum(self.float32_reasons.values())
        sizes = f"{si(self.bytes_before)}B before, {si(self.bytes_after)}B now"
        longer = PRECISIONS[self.precision].longer
        stays = "has 8 bits, or stays" if longer != "float32" else "stays"
        lowered = f"{count(self.lowered, 'operator')} in {self.precision}, {kept} in {longer}"
        if self.calibration_runs:
            lowered += f"; static scales, of {count(self.calibration_runs, 'run')}"
        reasons = sorted(self.float32_reasons.items(), key=lambda entry: -entry[1])
        blocks: list[Block] = [Text(self._answer(), True), Text(f"{lowered}; {sizes}")]
        if reasons:
            blocks.append(Table(f"{stays} in float32", ("why", "#operators"), reasons))
        if any(layer.router_types for layer in self.layers):
            columns = ("layer", "router projection", "scores", "gates")
            rows = [
                (layer.path, *((t.projection, t.scores, t.gates) if t else (None, None, None)))
                for layer in self.layers
                for t in [layer.router_types]
            ]
            blocks.append(Table("routers", columns, rows))
        if self.parity.kernels.emulated_dtype is not None:
            blocks.append(Text(self.parity.kernels.describe()))
        blocks += map(Text, comparison_lines(self.parity, with_quality=self.beside is None))
        if self.weights is not None:
            blocks.append(Text(f"{self.weights.name}: {self.weights.measured}"))
        if self.plain_session is not None:
            blocks.append(Text(self.plain_session, False))
        if self.beside is not None:
            blocks.append(comparison_section(self.beside, comparison_lines(self.beside)))
        return Document("precision", tuple(blocks), remarks=(f"written to {self.package}",))

    def _answer(self) -> str:
        to = "of" if self.parity.in_few_bits else "to"
        answer = (
            f"{self.parity.answer} {to} the original within the rule for {self.precision}: largest"
            f" error {self.parity.max_abs_error:.3g} as it runs here"
        )
        if self.parity.in_few_bits:
            return answer
        return (
            f"{answer}, {self.rounded.max_abs_error:.3g} with every result rounded as hardware does"
        )


def write_precision(
    package: OnnxPackage,
    low: str,
    output: Path,
    progress: Progress,
    *,
    float32: Sequence[str] = (),
    calibration: Sequence[Mapping[str, Array]] = (),
    beside: Callable[[Path], ParityReport] | None = None,
) -> PrecisionReport:
    """Write a float32 package in lower precision; see `moh_deploy.precision`.

    Args:
        calibration: Inputs of runs that static scales of int8 are made of; none: dynamic scales.
        beside: Compares what was written, which is not published yet, with the float32 package.

    Raises:
        ConfigError: The package is not in float32, or has no product that could be in integers.
        ValidationError: The package, or the new one, is not equal, or `beside` says no.
    """
    lowered_package.check_float32(package)
    in_few_bits = low in FEW_BITS
    with progress.step("comparing the package with the original model"):
        # First in float32: an error that was there before must not be taken for one of rounding.
        require_equal(package)
    dtypes: Mapping[str, str] = {}
    if in_few_bits:
        ranges = None
        if calibration:
            with progress.step("measuring how large values get"):
                ranges = activation_ranges(package, calibration, float32=float32)
        with progress.step(f"rounding weights to {low}"):
            found = quantized(package, to=low, float32=float32, ranges=ranges)
        model, manifest, lowered = found.model, found.manifest(package), found.lowered
        reasons = Counter(found.more_bits.values())
    else:
        model, manifest, reasons, dtypes = _half(package, low, progress)
        # A Cast is the border of lower precision, not work in it.
        work = [node for node in model.graph if node.op_type != "Cast"]
        lowered = sum(any(out.dtype == IR_TYPES[low] for out in node.outputs) for node in work)
    # Compared as it was written, from disk, and published only if it is equal.
    with PackageWriter(output) as writer:
        with progress.step("writing the package"):
            writer.save_model(model, package)
            # Caches are recorded in the dtype that the model takes now.
            vectors = [rounded_to(run, dtypes) for run in package.vectors]
            corpus = [
                replace(sample, vectors=rounded_to(sample.vectors, dtypes))
                for sample in package.corpus
            ]
            manifest = writer.stage(manifest, vectors, corpus)
        with progress.step("comparing what was written with the original model"):
            staged = OnnxPackage.open(writer.root, staged=True)
            parity = _compared(staged, round_results=False)
            # Integers are rounded as they are anywhere. Emulation rounds every result already: the
            # second comparison would be the same.
            is_rounded = in_few_bits or parity.kernels.emulated_dtype is not None
            rounded = parity if is_rounded else _compared(staged, round_results=True)
            # Beside its result: here the session leaves out what the crash is of.
            crash = crash_of_plain_session(staged.model_path) if low == "float16" else None
            weights = check_stored_weights(staged, package)
            if weights is not None and weights.reason is not None:
                raise ValidationError(f"what was written is wrong: {weights.reason}")
        comparison = None if beside is None else beside(writer.root)
        if comparison is not None:
            comparison.raise_if_unequal()
        written = writer.publish(replace(manifest, proof=proof_of(parity, package)))
    return PrecisionReport(
        package=written.root,
        precision=low,
        layers=manifest.layers,
        float32_reasons=reasons,
        lowered=lowered,
        bytes_before=model_bytes(package),
        bytes_after=model_bytes(written),
        parity=parity,
        rounded=rounded,
        plain_session=crash,
        calibration_runs=len(calibration),
        weights=weights,
        # By the name that it has now.
        beside=comparison and replace(comparison, subject=str(written.root)),
    )


def _half(
    package: OnnxPackage, to: str, progress: Progress
) -> tuple[ir.Model, Manifest, Counter[str], Mapping[str, str]]:
    """Return the model in half precision, what is said of it, and its caches' dtypes by name."""
    low = lowered_package.low_type(to)
    with progress.step("measuring how large values get"):
        largest = lowered_package.largest_values(package)
    with progress.step("lowering the precision"):
        model = load_ir(package)
        plan, layers = lowered_package.lower_model(model, package.manifest.layers, low, largest)
        caches = package.manifest.caches
        dtypes = {} if caches is None else narrow_caches(model, caches)
    manifest = with_dtypes(lowered_package.lowered_manifest(package, low, layers), dtypes)
    # Reasons that name a value are of one kind.
    reasons = Counter(
        f"values too large for {low}" if " reached " in reason else reason
        for reason in plan.float32.values()
    )
    return model, manifest, reasons, dtypes


def _compared(package: OnnxPackage, *, round_results: bool) -> ParityReport:
    """Compare with the original, as it runs here or with results rounded as hardware does.

    Raises:
        ValidationError: It is not equal.
    """
    report = compare_recorded(package, Variant(round_results=round_results))
    if report.failure is not None:
        how = " That is with every result rounded, as hardware does." if round_results else ""
        is_static = bool(package.manifest.activation_ranges)
        raise ValidationError(
            f"{report.failure.message}{how}",
            hint=("Calibrate on more samples: what is larger is cut off. " if is_static else "")
            + _HINTS[package.manifest.precision in FEW_BITS],
        )
    return report
