"""How the edge cases of a package ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby

from moh_deploy.errors import ValidationError
from moh_deploy.package import MOST_CORPUS_BYTES, CorpusSample
from moh_deploy.report.document import Block, Case, Document, Outcome, Suite, Table, Text, Verdict
from moh_deploy.report.numbers import count
from moh_deploy.report.report import Report
from moh_deploy.runtime.layer_runs import LayerRun
from moh_deploy.runtime.layers_text import runs_text
from moh_deploy.runtime.runner import KernelUse
from moh_deploy.validate.edge_cases.case_result import CaseResult, Status
from moh_deploy.validate.edge_cases.input_states import ZERO
from moh_deploy.validate.edge_cases.mining import Mined

SCHEMA_VERSION = 1

STATUSES: tuple[Status, ...] = ("passed", "failed", "not applicable", "not run")

REFERENCE = (
    "gates: the float64 reference of MoHRouter; samples by themselves: the recorded run; all else:"
    " function bodies with optimisations off (not the original model)"
)

_MOST_SHOWN = 8
_COLUMNS = ("kind", "case", "where", "result", "what was found")
_OUTCOMES: dict[Status, Outcome] = {
    "passed": "passed",
    "failed": "failure",
    "not applicable": "skipped",
    "not run": "skipped",
}


@dataclass(frozen=True)
class ProbeReport(Report):
    """What became of each case.

    Attributes:
        results: Every case, a routing state once for each layer.
        mining: What the user's inputs gave; None without inputs.
        corpus: The regression corpus of the package as it is now.
        corpus_written: It was written by this run.
        layers: The paths of all layers, in the manifest's order.
        layer_runs: What ran each MoH layer, read from the runtime.
        kernels: The kernel library that was registered, or why none was.
        policy: Where tolerances come from.
    """

    results: tuple[CaseResult, ...]
    mining: Mined | None
    corpus: tuple[CorpusSample, ...]
    corpus_written: bool
    layers: tuple[str, ...]
    layer_runs: tuple[LayerRun, ...]
    kernels: KernelUse
    policy: str

    def count(self, status: Status) -> int:
        """Return how many results are of a status."""
        return sum(1 for one in self.results if one.status == status)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Every sentence on what failed; empty if nothing did and something passed that has
        numbers.

        Inputs that were given to be searched, and could not be, are no pass.
        """
        failed = tuple(one.detail for one in self.results if one.status == "failed")
        if not failed and not self.count("passed"):
            return ("no case could be run, so nothing is proven.",)
        if not failed and not any(map(_has_numbers, self.results)):
            return ("no case of a size above 0 passed, so nothing is proven.",)
        return (*failed, *(one.detail for one in self.results if _is_missed(one)))

    @property
    def passed(self) -> bool:
        return not self.reasons

    @property
    def failure(self) -> ValidationError | None:
        """The error that says the answer is no; None if there is none."""
        if self.passed:
            return None
        first, *others = self.reasons
        more = f" ({len(others)} more)" if others else ""
        return ValidationError(f"the package does not stand its edge cases: {first}{more}")

    def raise_if_failed(self) -> None:
        """Raise the failure, if there is one.

        Raises:
            ValidationError: A case failed, or none could be run.
        """
        if self.failure is not None:
            raise self.failure

    def to_json(self) -> dict[str, object]:
        """Return the report in plain JSON types."""
        return {
            "schema_version": SCHEMA_VERSION,
            "passed": self.passed,
            "counts": {status: self.count(status) for status in STATUSES},
            "reasons": list(self.reasons),
            "results": [asdict(one) for one in self.results],
            "mining": None if self.mining is None else _mining_json(self.mining, self.layers),
            "corpus": {
                "samples": len(self.corpus),
                "bytes": sum(one.num_bytes for one in self.corpus),
                "recorded_from": sorted({one.reference for one in self.corpus}),
                "smallest_margin": min((one.margin for one in self.corpus), default=None),
                "written": self.corpus_written,
            },
            "reference": REFERENCE,
            "policy": self.policy,
            "layer_runs": [asdict(run) for run in self.layer_runs],
            "kernels": self.kernels.to_json(),
        }

    def document(self) -> Document:
        """Return what it says."""
        return _document(self)


def _has_numbers(one: CaseResult) -> bool:
    return one.status == "passed" and not one.case.startswith(ZERO)


def _is_missed(one: CaseResult) -> bool:
    return one.kind == "corpus" and one.status == "not run"


def _document(report: ProbeReport) -> Document:
    rows = [
        row
        for _, group in groupby(report.results, lambda one: one.kind)
        for row in _rows(list(group))
    ]
    blocks: list[Block] = [Table("edge cases", _COLUMNS, rows)]
    if report.mining is not None:
        blocks += _mining_blocks(report.layers, report.mining)
    counts = ", ".join(f"{report.count(status)} {status}" for status in STATUSES)
    verdict = Verdict(
        "PASSED" if report.passed else "FAILED",
        report.passed,
        counts,
        (counts, *_lines(report)),
        reasons=report.reasons,
    )
    return Document("probe", tuple(blocks), verdict, suites=(_suite(report),))


def _lines(report: ProbeReport) -> Iterator[str]:
    yield f"reference: {REFERENCE}"
    if report.mining is not None:
        searched = count(report.mining.searched, "sample")
        yield f"{searched} searched, {report.mining.tokens} choices of heads"
    size = sum(one.num_bytes for one in report.corpus)
    written = "written" if report.corpus_written else "as it was"
    yield f"regression corpus: {count(len(report.corpus), 'sample')}, {size} bytes, {written}"
    yield runs_text(report.layer_runs)
    yield report.kernels.describe()


def _rows(results: Sequence[CaseResult]) -> Iterator[tuple[str, str, str, str, str]]:
    """Fold layers of which the same is said into one row."""
    folded: dict[tuple[str, str, str], list[CaseResult]] = {}
    for one in results:
        folded.setdefault((one.case, one.status, one.detail), []).append(one)
    for (case, status, detail), group in folded.items():
        places = [one.place for one in group]
        where = places[0] if len(places) == 1 else count(len(places), "layer")
        yield group[0].kind, case, where, status, detail


def _mining_blocks(layers: Sequence[str], mining: Mined) -> Iterator[Block]:
    rows = [
        (name, layers[token.layer], str(list(token.token)), token.margin)
        for name, sample in zip(mining.names, mining.samples, strict=True)
        for token in sample.mined[:1]
    ]
    title = "least clear choices in the inputs, one of each sample"
    if rows:
        yield Table(title, ("sample", "layer", "token", "#margin"), rows)
    if mining.too_large:
        size = f"{MOST_CORPUS_BYTES // 2**20} MiB"
        yield Text(
            f"{count(mining.too_large, 'sample')} of the least clear left out: a corpus has room"
            f" for {size}. Shorter inputs fit."
        )
    if mining.unknown:
        shown = ", ".join(mining.unknown[:_MOST_SHOWN])
        more = len(mining.unknown) - _MOST_SHOWN
        others = f" and {more} more" if more > 0 else ""
        yield Text(f"Margins are not known, or nothing is chosen, in {shown}{others}.")


def _suite(report: ProbeReport) -> Suite:
    """Return each case as a test case: what did not run is skipped, and never passed."""
    said = f"{report.count('passed')} passed" if report.passed else report.reasons[0]
    verdict = Case("probe", "verdict", "passed" if report.passed else "failure", said)
    facts = (
        ("reference", REFERENCE),
        ("policy", report.policy),
        ("kernels", report.kernels.describe()),
    )
    return Suite((verdict, *map(_case, report.results)), facts=facts)


def _case(result: CaseResult) -> Case:
    outcome = _OUTCOMES[result.status]
    detail = f"{result.status}: {result.detail}" if outcome == "skipped" else result.detail
    return Case(result.kind, f"{result.case} [{result.place}]", outcome, detail)


def _mining_json(mining: Mined, layers: Sequence[str]) -> dict[str, object]:
    return {
        "searched": mining.searched,
        "choices": mining.tokens,
        "too_large": mining.too_large,
        "layers_without_margins": list(mining.unknown),
        "samples": [
            {
                "name": name,
                "tokens": [
                    {"layer": layers[one.layer], "token": list(one.token), "margin": one.margin}
                    for one in sample.mined
                ],
            }
            for name, sample in zip(mining.names, mining.samples, strict=True)
        ],
    }
