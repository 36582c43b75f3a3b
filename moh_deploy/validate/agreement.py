"""Measure how far two sides agree: top-1 classes of outputs, and heads of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moh_deploy.package import TensorInfo
from moh_deploy.report.document import Fact
from moh_deploy.report.numbers import count, share
from moh_deploy.system.npz import Array

if TYPE_CHECKING:
    from moh_deploy.validate.parity_report import OutputParity, ParityReport


@dataclass(frozen=True)
class Top1Agreement:
    """The rows of an output that have the same top-1 class as the reference.

    Attributes:
        same: Their number.
        of: The number of all rows.
    """

    same: int
    of: int

    def __add__(self, other: Top1Agreement) -> Top1Agreement:
        return Top1Agreement(self.same + other.same, self.of + other.of)


@dataclass(frozen=True)
class Flips:
    """Tokens that chose other heads than in the reference, each counted once a layer.

    Attributes:
        tokens: So many.
        of: Of so many.
    """

    tokens: int
    of: int


def holds_classes(output: TensorInfo) -> bool:
    """Tell whether an output looks like logits of classes or tokens: [N, C], [N, S, C], C fixed."""
    classes = output.shape[-1] if len(output.shape) in (2, 3) else None
    return "float" in output.dtype and isinstance(classes, int) and classes > 1


def top_1_agreement(got: Array, reference: Array) -> Top1Agreement:
    """Count the rows of two arrays [..., C] that have their largest number at the same place."""
    same = got.argmax(axis=-1) == reference.argmax(axis=-1)
    return Top1Agreement(int(np.count_nonzero(same)), int(same.size))


def top_1_by_output(outputs: Iterable[OutputParity]) -> dict[str, Top1Agreement]:
    """Add up the rows of each output over all runs that were left to themselves."""
    found: dict[str, Top1Agreement] = {}
    for output in outputs:
        if output.top_1 is not None and not output.forced:
            found[output.name] = output.top_1 + found.get(output.name, Top1Agreement(0, 0))
    return found


def agreement_facts(report: ParityReport, *, with_quality: bool = True) -> Iterator[Fact]:
    """Yield how far a package in int8 or int4 agrees with its reference; of others nothing.

    Its tolerance says how far rounding moves such weights, and nothing of quality.
    """
    if not report.is_in_integers:
        return
    for name, top1_agreement in report.top_1.items():
        same = share(top1_agreement.same / top1_agreement.of) if top1_agreement.of else None
        yield Fact(
            "top-1 agreement",
            same or "no data",
            f"of {count(top1_agreement.of, 'row')} of '{name}'",
        )
    if report.flips is not None:
        yield Fact("other heads", str(report.flips.tokens), f"of {report.flips.of} tokens")
    asked = report.accuracy or any(check.asked for check in report.checks)
    if with_quality and not asked:
        how = "--labels or --within, with --inputs of your own, measures it"
        yield Fact("quality", "not measured", f"({how})")
