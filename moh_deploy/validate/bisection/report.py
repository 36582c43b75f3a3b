"""Where a package first diverges, and which nodes have to be in float32."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from moh_deploy.errors import ValidationError
from moh_deploy.report.document import (
    PAGE,
    Block,
    Column,
    Document,
    Drawn,
    Table,
    Text,
    Verdict,
    percent,
)
from moh_deploy.report.report import FLAT, Report, count, in_json, si
from moh_deploy.validate.bisection.divergence import NodeError
from moh_deploy.validate.bisection.locate import Between, Cause, Divergence
from moh_deploy.validate.bisection.mixed_precision import MixedPrecision
from moh_deploy.validate.bisection.places import NodePlace
from moh_deploy.validate.compare.parity_report import ParityReport

_MOST_ROWS = 40
_MOST_NAMES = 5
_MOST_MODULES = 8

_CAUSES: dict[Cause, str] = {
    "kernel": "a kernel computes something else than the function body of its node",
    "optimisation": "ONNX Runtime's graph optimisations change the result",
    "precision": "lower precision",
    "float32": "in float32 it is off by more than the target, and by no more than `verify` allows:"
    " that may be rounding, or the graph",
    "graph": "the graph computes something else than the original model",
}

_REFERENCE = " --reference DIR, a float32 package of the model that is right, leads to the node."


@dataclass(frozen=True)
class Repair:
    """The nodes to keep in float32, and the size, speed and parity that come of it."""

    mixed: MixedPrecision = field(metadata=FLAT)  # the nodes
    weights: str  # where their float32 weights come from
    bytes_before: int  # size of the model with its weights
    bytes_after: int  # the same with the nodes in float32
    # Part of the model's multiply-adds that these nodes have; None if unknown.
    flops_share: float | None
    parity: ParityReport  # the comparison of the repaired package with the reference
    written: Path | None  # the directory that it was written to; None if none was asked for


@dataclass(frozen=True)
class BisectReport(Report):
    """The answer of `bisect`: where a package diverges, and what would mend it.

    Attributes:
        schema_version: Of its JSON; docs/bisect.schema.json describes it.
        package: The directory.
        precision: Of the package.
        reference: What the runs were judged by.
        reasons: What is not equal, or above the target; empty if nothing diverges.
        target: How far outputs may be off; None for what `verify` allows.
        passes_verify: It is equal as the runtime here runs it.
        divergence: Where it first diverges; None if nothing does.
        errors: The error of each node whose result was compared, in execution order.
        repair: Which nodes have to be in float32; None where that was not asked for, does not
            help, or could not be found.
        why_no_repair: A sentence, where it was looked for and not found.
        notes: What could not be done.
    """

    schema_version: Literal[1] = field(default=1, init=False)
    package: Path
    precision: str
    reference: str
    reasons: tuple[str, ...]
    target: float | None = None
    passes_verify: bool = False
    divergence: Divergence | None = None
    errors: tuple[NodeError, ...] = ()
    repair: Repair | None = None
    why_no_repair: str | None = None
    notes: tuple[str, ...] = ()

    @property
    @in_json()
    def diverges(self) -> bool:
        return bool(self.reasons)

    @property
    @in_json()
    def repaired(self) -> bool:
        """A package that is right was written."""
        return self.repair is not None and self.repair.written is not None

    @property
    @in_json()
    def sentence(self) -> str:
        """Return the finding in a sentence or two."""
        if self.divergence is None:
            return f"nothing diverges from the {self.reference}."
        sentence = divergence_text(self.divergence)
        return sentence if self.repair is None else f"{sentence} {_repair_text(self.repair)}"

    @property
    def failure(self) -> ValidationError | None:
        """The error that ends the command with 1; None if nothing diverges, or it was repaired."""
        if not self.diverges or self.repaired:
            return None
        hint = "Write the repaired package with --output DIR." if self.repair is not None else None
        more = "" if self.why_no_repair is None else f" {self.why_no_repair}"
        return ValidationError(f"{self.sentence}{more}", hint=hint)

    def document(self) -> Document:
        """Return what it says."""
        blocks: list[Block] = []
        if self.divergence is not None:
            blocks += _divergence_blocks(self.divergence)
            by_module: dict[str, NodeError] = {}
            for error in self.errors:
                known = by_module.setdefault(error.place.module, error)
                if error.behind > known.behind:
                    by_module[error.place.module] = error
            worst = list(by_module.items())
            rows = [
                (path, x.place.node, _drawn(x), _size_text(x)) for path, x in worst[:_MOST_ROWS]
            ]
            if rows:
                more = len(worst) - len(rows)
                title = "largest error of each module, as a share of the largest value"
                title += f" (the first {len(rows)}, {more} more in --json)" if more else ""
                columns = ("module", "node", Column("error, drawn", PAGE), "#error")
                blocks.append(Table(title, columns, rows, "modules", axis="decades"))
        if self.repair is not None:
            blocks += _repair_blocks(self.repair)
        return Document("bisect", tuple(blocks), self._verdict(), remarks=self.notes)

    def _verdict(self) -> Verdict:
        found, repair = self.divergence, self.repair
        if found is None:
            text = f"compared with the {self.reference}"
            return Verdict("NOTHING DIVERGES", True, f"{text}.", (text,))
        where = divergence_text(found)
        sentence = where[0].upper() + where[1:]
        if repair is None or repair.written is None:
            needed = self.why_no_repair if repair is None else _repair_text(repair)
            return Verdict("DIVERGES", False, sentence, (where,), notes=(needed,) if needed else ())
        error = f"largest error {repair.parity.max_abs_error:.3g}"
        text = f"passes verify, {error}; written to {repair.written}"
        notes = (sentence, _repair_text(repair))
        return Verdict("REPAIRED", True, f"{text}.", (text,), notes=notes)


def _divergence_blocks(found: Divergence) -> Iterator[Block]:
    rows = [(run.what, run.error, run.limit) for run in found.wrong]
    is_wrong = any(run.reason is not None for run in found.wrong)
    what = "what is wrong" if is_wrong else "what is nearest to its limit"
    yield Table(f"{what}, with the reference gates fed", ("", "#error", "#allowed"), rows)
    if found.between is None:
        return
    # Module by module, in the order in which the modules first run.
    suspects = found.suspects
    modules = list(dict.fromkeys(place.module for place in suspects))
    ordered = sorted(suspects, key=lambda place: modules.index(place.module))
    nodes = [(place.module, place.op, place.node) for place in ordered[:_MOST_ROWS]]
    yield Table("nodes that may be wrong", ("module", "operator", "node"), nodes)
    if len(suspects) > _MOST_ROWS:
        yield Text(f"and {len(suspects) - _MOST_ROWS} more, which --json lists")


def _repair_text(repair: Repair) -> str:
    nodes = repair.mixed.nodes
    names = ", ".join(f"'{node.place.node}'" for node in nodes[:_MOST_NAMES])
    more = f" and {len(nodes) - _MOST_NAMES} more" if len(nodes) > _MOST_NAMES else ""
    needs = "needs" if len(nodes) == 1 else "need"
    return f"{count(len(nodes), 'node')} {needs} float32: {names}{more}."


def _repair_blocks(repair: Repair) -> Iterator[Block]:
    nodes = repair.mixed.nodes[:_MOST_ROWS]
    rows = [(node.place.module, node.place.op, node.place.node, node.reason) for node in nodes]
    yield Table("has to be in float32", ("module", "operator", "node", "why"), rows)
    least = "fewer may do: runs were used up"
    if repair.mixed.smallest:
        least = "none of them can be spared"
    yield Text(
        f"found in {count(repair.mixed.trials, 'run')}; {least}. It takes"
        f" {percent(repair.flops_share) or 'an unknown share'} of the multiply-adds, and"
        f" {si(repair.bytes_after)}B in place of {si(repair.bytes_before)}B, with {repair.weights}."
    )


def divergence_text(found: Divergence) -> str:
    """Say where it is: the node, or between which recorded values, or that nothing tells."""
    differences = f" ({'; '.join(found.differences)})" if found.differences else ""
    more = _REFERENCE if found.against is None and found.cause == "graph" else ""
    return f"{_place(found)}{differences}: {_CAUSES[found.cause]}.{more}"


def _size_text(error: NodeError) -> str:
    """Say how large the error behind a node is."""
    if not error.finite:
        return "NaN or infinity"
    return "nothing alike" if math.isinf(error.behind) else f"{error.behind:.2g}"


def _drawn(error: NodeError) -> Drawn:
    """Draw it; without a size it ends at the right end of the axis."""
    size = error.behind if error.finite else math.inf
    return Drawn(f"error {_size_text(error)}", size, bar_from=0.0, is_bad=not math.isfinite(size))


def _place(found: Divergence) -> str:
    if found.first is not None:
        shows = "first shows at" if found.cause == "precision" else "first diverges at"
        return (
            f"{shows} {found.first.place}: an error of {found.first.before:.2g} before it,"
            f" {_size_text(found.first)} behind it, as a share of the largest value, against"
            f" {found.against}"
        )
    if found.step is not None:
        return (
            f"no single node is beyond rounding, errors add up: {found.step.place} adds most,"
            f" {found.step.before:.2g} before it, {_size_text(found.step)} behind it, against"
            f" {found.against}"
        )
    between = found.between
    if between is None:
        return "diverges, and nothing that was recorded tells where"
    text = f"diverges {_bounds(found, between)}"
    if not any(run.reason is not None for run in found.wrong):
        text = (
            "with the reference gates fed every recorded value is within its limit, errors add up;"
            f" what the {between.before} is off by arises {_bounds(found, between)}"
        )
    nodes, alone = between.nodes, between.alone
    text = f"{text}: {_one_of(nodes)}"
    if alone and len(alone) < len(nodes):
        text = f"{text}; if no other one is wrong, {_one_of(alone)}"
        nodes = alone
    text = f"{text}: {_names(nodes)}"
    if not between.unseen:
        return text
    return (
        f"{text}; or {_one_of(between.unseen)} before, where a fault need not show in the"
        f" {_listed(between.after)}: {_names(between.unseen)}"
    )


def _bounds(found: Divergence, between: Between) -> str:
    """Say which recorded values the nodes lie between: behind the ones, before the other."""
    order = [checkpoint.what for checkpoint in found.checkpoints]
    before, after = between.before, _listed(between.after)
    agree = "agrees" if len(between.after) == 1 else "agree"
    if not between.after:
        return f"before the {before}; no other recorded value proves anything there right"
    if all(order.index(name) < order.index(before) for name in between.after):
        return f"between the {after}, which {agree} to rounding, and the {before}"
    return f"in what leads to the {before}, and not to the {after}, which {agree} to rounding"


def _listed(values: Sequence[str]) -> str:
    more = len(values) - _MOST_NAMES
    return ", the ".join(values[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _one_of(places: Sequence[NodePlace]) -> str:
    return "this node" if len(places) == 1 else f"one of {len(places)} nodes"


def _names(places: Sequence[NodePlace]) -> str:
    """Name the nodes if they are few, or else their modules."""
    if len(places) <= _MOST_NAMES:
        return ", ".join(str(place) for place in places)
    counts = Counter(place.module for place in places)
    named = [f"{count} in '{module}'" for module, count in list(counts.items())[:_MOST_MODULES]]
    more = len(counts) - len(named)
    return ", ".join(named) + (f" and others in {more} more modules" if more > 0 else "")
