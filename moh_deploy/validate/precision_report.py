"""What lowering a package's precision did, and how far it is from the original."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from moh_deploy.package import LayerInfo
from moh_deploy.report.document import Block, Document, Table, Text
from moh_deploy.report.numbers import count, si
from moh_deploy.report.report import Report
from moh_deploy.validate.checks import Check
from moh_deploy.validate.parity_document import comparison_lines, comparison_section
from moh_deploy.validate.parity_report import ParityReport


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
