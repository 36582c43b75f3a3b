"""What was written when a package's model was brought to standard operators."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moh_deploy.report.document import Block, Document, Text
from moh_deploy.report.numbers import count, si
from moh_deploy.report.report import Report
from moh_deploy.validate.parity_report import ParityReport


@dataclass(frozen=True)
class InlineReport(Report):
    """A model in standard operators only.

    Attributes:
        model: The file that was written.
        weights: The file beside it that holds its weights; None if they are inside.
        opset: Version of the standard operators.
        operators: How many operators the model has now.
        bytes: Size of the model with its weights.
        parity: The comparison of the written model with the original, in ONNX Runtime without any
            library of kernels.
    """

    model: Path
    weights: Path | None
    opset: int
    operators: int
    bytes: int
    parity: ParityReport

    def document(self) -> Document:
        """Return what it says."""
        parity = self.parity
        what = (
            f"{count(self.operators, 'operator')}, all of ONNX's own opset {self.opset};"
            f" {si(self.bytes)}B with weights"
        )
        blocks: list[Block] = [Text(what)]
        if parity.kernels.emulated_dtype is not None:
            blocks.append(Text(parity.kernels.describe()))
        routing = parity.routing_agreement
        agreement = "" if routing is None else f", routing agreement {routing:.6g}"
        to = "of" if parity.is_in_integers else "to"
        runs = count(parity.vector_sets, "run")
        error = f"max abs error {parity.max_abs_error:.3g}"
        equal = f"{parity.answer} {to} the original on {runs}: {error}{agreement}"
        blocks.append(Text(equal, True))
        beside = "" if self.weights is None else f", weights in {self.weights}"
        return Document("inline", tuple(blocks), remarks=(f"written to {self.model}{beside}",))
