"""Write a package again in float16, bfloat16, int8 or int4."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast, get_args

import onnx_ir as ir

from moh_deploy.api.verify import verify
from moh_deploy.config.dtypes import IntegerPrecision, LowerPrecision, dtype_named
from moh_deploy.errors import ConfigError, ValidationError
from moh_deploy.graph.load_model import load_ir
from moh_deploy.graph.precision_casts import IR_TYPES, narrow_caches
from moh_deploy.graph.precision_policy import LowType
from moh_deploy.package import (
    CorpusSample,
    LayerInfo,
    Manifest,
    OnnxPackage,
    PackageWriter,
    VectorSet,
    check_package_output,
)
from moh_deploy.package.cache_buffers import rounded_to, with_dtypes
from moh_deploy.package.writer import model_bytes
from moh_deploy.report.document import Block, Document, Table, Text
from moh_deploy.report.numbers import count, si
from moh_deploy.report.report import Report
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.lowered_package import (
    check_float32,
    largest_values,
    low_type,
    lower_model,
    lowered_manifest,
)
from moh_deploy.runtime.onnxruntime.session import crash_of_plain_session
from moh_deploy.runtime.quantized_package import quantized
from moh_deploy.system.npz import Array
from moh_deploy.system.progress import Progress, SilentProgress
from moh_deploy.validate.compare.checks import Check, check_stored_weights
from moh_deploy.validate.compare.parity import compare_recorded, proof_of, require_equal
from moh_deploy.validate.compare.parity_report import (
    ParityReport,
    comparison_lines,
    comparison_section,
)

# What lowering a package's precision did, and how far it is from the original.


@dataclass(frozen=True)
class PrecisionReport(Report):
    """One package in lower precision.

    Attributes:
        package: The directory that was written.
        precision: `float16`, `bfloat16`, `int8` or `int4`.
        layers: Every MoH layer, with the dtypes of its router.
        float32_reasons: Why operators stay in float32, or weights have 8 bits instead of 4, to how
            many do for that reason.
        lowered: How many operators compute in the lower precision.
        bytes_before: Size of the model with its weights.
        bytes_after: The same of the new one.
        parity: The comparison of the package as it runs here with the original model.
        rounded: The same with every result rounded, as hardware does: ONNX Runtime on the CPU
            computes runs of float16 operators in float32. Of int8 and int4 it is `parity`.
        weights: What comparing the stored weights found, in int8 and int4.
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
    weights: Check | None = None
    plain_session: str | None = None
    beside: ParityReport | None = None

    def document(self) -> Document:
        """Return what it says."""
        kept = sum(self.float32_reasons.values())
        sizes = f"{si(self.bytes_before)}B before, {si(self.bytes_after)}B now"
        stays = "has 8 bits, or stays" if self.precision == "int4" else "stays"
        others = "in 8 bits or float32" if self.precision == "int4" else "in float32"
        lowered = f"{count(self.lowered, 'operator')} in {self.precision}, {kept} {others}"
        rows = sorted(self.float32_reasons.items(), key=lambda entry: -entry[1])
        blocks: list[Block] = [Text(f"{lowered}; {sizes}")]
        if rows:
            blocks.append(Table(f"{stays} in float32", ("why", "#operators"), rows))
        if any(layer.router_types for layer in self.layers):
            columns = ("layer", "router projection", "scores", "gates")
            blocks.append(Table("routers", columns, list(map(_router_row, self.layers))))
        if self.parity.kernels.emulated_dtype is not None:
            blocks.append(Text(self.parity.kernels.describe()))
        to = "of" if self.parity.is_in_integers else "to"
        verdict = (
            f"{self.parity.answer} {to} the original within the rule for {self.precision}: largest"
            f" error {self.parity.max_abs_error:.3g} as it runs here"
        )
        if not self.parity.is_in_integers:
            verdict += (
                f", {self.rounded.max_abs_error:.3g} with every result rounded as hardware does"
            )
        blocks.append(Text(verdict, True))
        blocks += map(Text, comparison_lines(self.parity, with_quality=self.beside is None))
        if self.weights is not None:
            blocks.append(Text(f"{self.weights.name}: {self.weights.measured}"))
        if self.plain_session is not None:
            blocks.append(Text(self.plain_session, False))
        if self.beside is not None:
            blocks.append(comparison_section(self.beside, comparison_lines(self.beside)))
        return Document("precision", tuple(blocks), remarks=(f"written to {self.package}",))


def _router_row(layer: LayerInfo) -> tuple[str | None, ...]:
    types = layer.router_types
    if types is None:
        return layer.path, None, None, None
    return layer.path, types.projection, types.scores, types.gates


LOWER_PRECISIONS = get_args(LowerPrecision)[::-1]
"""What a float32 package can be written in, the shortest first: what `tune --within` tries."""


def precision(
    package_dir: Path | str,
    *,
    to: str,
    output: Path | str,
    float32: Sequence[str] = (),
    within: str | Sequence[str] = (),
    inputs: Sequence[Path | str] = (),
    labels: Path | str | Array | None = None,
    label_output: str | None = None,
    ignore_label: int = -100,
    shift_labels: bool = False,
    batch_size: int | None = None,
    code_dirs: Sequence[Path | str] = (),
    progress: Progress | None = None,
) -> PrecisionReport:
    """Write a package whose graph says, by its types, where lower precision is used.

    In half precision products and activations are low; the scores, softmax, choice and gates of
    routers, norms and other reductions stay in float32, and so does what left the range of float16
    on the recorded inputs. In int8 products with stored weights are, and what they read is rounded
    when it is met; all else stays in float32, and products that make nothing but scores of routers
    do. In int4 their weights are, in blocks with a scale each, and what they read is rounded to 8
    bits. Inputs and outputs of the model keep their dtypes, but for caches that are written in
    place: they are kept in half precision from call to call.

    Args:
        package_dir: A package in float32.
        to: `float16`, `bfloat16`, `int8` or `int4`.
        output: The package directory to write.
        float32: With `int8` and `int4`: names of products that stay in float32.
        within: Conditions that have to hold besides, as `tune_within` takes them. With these,
            `inputs` or `labels`, the new package is compared with the float32 one, too; they and
            the options up to `code_dirs` are those of `verify`.
        progress: What to report steps to.

    Raises:
        ConfigError: `to` is none of these, the package is not in float32, or has no product that
            could be in integers.
        PackageError: Not a package, or the output cannot be written.
        ValidationError: The package, or the new one, differs from the original model by more than
            the rule for its precision allows, or a condition does not hold. Nothing is written.
    """
    progress, output = progress or SilentProgress(), Path(output)
    low = dtype_named(to, LOWER_PRECISIONS, option="to")
    in_integers = low in get_args(IntegerPrecision)
    if float32 and not in_integers:
        raise ConfigError(
            f"float32 names products, which is for int8 and int4; to is {low}.",
            hint="`moh-deploy bisect` finds the operators that have to stay in float32.",
        )
    check_package_output(output, made_of=Path(package_dir))
    with progress.step("reading the package"):
        package = OnnxPackage.open(package_dir)
        check_float32(package)
    with progress.step("comparing the package with the original model"):
        # First in float32: an error that was there before must not be taken for one of rounding.
        require_equal(package)
    made = (
        _in_integers(package, cast("IntegerPrecision", low), float32, progress)
        if in_integers
        else _half(package, low_type(to), progress)
    )
    # Compared as it was written, from disk, and published only if it is equal.
    with PackageWriter(output) as writer:
        with progress.step("writing the package"):
            writer.save_model(made.model, package)
            manifest = writer.stage(made.manifest, *_rounded(package, made.dtypes))
        with progress.step("comparing what was written with the original model"):
            staged = OnnxPackage.open(writer.root, staged=True)
            parity = _compare(staged, round_results=False)
            # Integers are rounded as they are anywhere. Emulation rounds every result already: the
            # second comparison would be the same.
            is_rounded = in_integers or parity.kernels.emulated_dtype is not None
            rounded = parity if is_rounded else _compare(staged, round_results=True)
            # Beside its result: here the session leaves out what the crash is of.
            crash = crash_of_plain_session(staged.model_path) if low == "float16" else None
            weights = check_stored_weights(staged, package)
            if weights is not None and weights.reason is not None:
                raise ValidationError(f"what was written is wrong: {weights.reason}")
        beside = None
        if within or inputs or labels is not None:
            beside = verify(
                writer.root,
                staged=True,
                against=[package.root],
                inputs=inputs,
                labels=labels,
                within=within,
                label_output=label_output,
                ignore_label=ignore_label,
                shift_labels=shift_labels,
                batch_size=batch_size,
                code_dirs=code_dirs,
                progress=progress,
            )
            beside.raise_if_unequal()
        written = writer.publish(replace(manifest, proof=proof_of(parity, package)))
    return PrecisionReport(
        package=written.root,
        precision=low,
        layers=made.manifest.layers,
        float32_reasons=made.float32_reasons,
        lowered=made.lowered,
        bytes_before=model_bytes(package),
        bytes_after=model_bytes(written),
        parity=parity,
        rounded=rounded,
        plain_session=crash,
        weights=weights,
        # By the name that it has now.
        beside=None if beside is None else replace(beside, subject=str(written.root)),
    )


@dataclass(frozen=True)
class _Made:
    """A model in lower precision, and what is said of it.

    Attributes:
        float32_reasons: Why operators stay in float32, or weights have 8 bits instead of 4, to how
            many do.
        lowered: How many operators compute in the lower precision.
        dtypes: Name of each input and output that has another dtype, a cache, to that.
    """

    model: ir.Model
    manifest: Manifest
    float32_reasons: Counter[str]
    lowered: int
    dtypes: Mapping[str, str] = field(default_factory=dict)


def _rounded(
    package: OnnxPackage, dtypes: Mapping[str, str]
) -> tuple[list[VectorSet], list[CorpusSample]]:
    """Return recorded runs and corpus with caches in the dtype that the model takes now."""
    return (
        [rounded_to(vector_set, dtypes) for vector_set in package.vectors],
        [replace(sample, vectors=rounded_to(sample.vectors, dtypes)) for sample in package.corpus],
    )


def _half(package: OnnxPackage, low: LowType, progress: Progress) -> _Made:
    with progress.step("measuring how large values get"):
        largest = largest_values(package)
    with progress.step("lowering the precision"):
        model = load_ir(package)
        plan, layers = lower_model(model, package.manifest.layers, low, largest)
        caches = package.manifest.caches
        dtypes = {} if caches is None else narrow_caches(model, caches)
    return _Made(
        model,
        with_dtypes(lowered_manifest(package, low, layers), dtypes),
        Counter(_kind(reason, low) for reason in plan.float32.values()),
        sum(1 for node in model.graph if _computes_in(node, low)),
        dtypes,
    )


def _in_integers(
    package: OnnxPackage, to: IntegerPrecision, float32: Sequence[str], progress: Progress
) -> _Made:
    with progress.step(f"rounding weights to {to}"):
        found = quantized(package, to=to, float32=float32)
    reasons = Counter(found.more_bits.values())
    return _Made(found.model, found.manifest(package), reasons, found.lowered)


_HINTS = {
    False: "`moh-deploy bisect DIR --to float16|bfloat16 --output DIR` finds the operators that"
    " have to stay in float32, and writes the package with them.",
    True: "`moh-deploy bisect DIR --to int8 --output DIR` finds the products that have to stay in"
    " float32, and writes the package with them; --float32 NODE keeps one of them.",
}


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
            hint=_HINTS[package.manifest.precision in get_args(IntegerPrecision)],
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
