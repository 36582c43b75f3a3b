"""Report the edge cases of a package."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

from moh_deploy.errors import ValidationError
from moh_deploy.package import MOST_CORPUS_BYTES, CorpusSample
from moh_deploy.report import document as doc
from moh_deploy.report.report import HIDDEN, Report, count, in_json
from moh_deploy.runtime.kernel_use import KernelUse
from moh_deploy.runtime.layer_runs import LayerRun
from moh_deploy.runtime.layers_text import runs_text
from moh_deploy.validate.edge_cases.mining import Mined
from moh_deploy.validate.edge_cases.source import ZERO, CaseResult, CaseStatus

STATUSES: tuple[CaseStatus, ...] = ("passed", "failed", "not applicable", "not run")

_REFERENCE = (
    "gates: the float64 reference of MoHRouter; samples by themselves: the recorded run; all else:"
    " function bodies with optimisations off (not the original model)"
)

_MOST_REASONS, _MOST_SHOWN = 10, 8
_COLUMNS = ("kind", "case", "where", "result", doc.Column("what was found", width="long"))
_IS_GOOD: dict[CaseStatus, bool | None] = {"passed": True, "failed": False}
_MEANS: dict[CaseStatus, str] = {
    "passed": "it ran and agrees",
    "failed": "a sentence names case and layer",
    "not applicable": "the model lacks the case",
    "not run": "the right answer is unknown here",
}
_OUTCOMES: dict[CaseStatus, doc.CiOutcome] = {
    "passed": "passed",
    "failed": "failure",
    "not applicable": "skipped",
    "not run": "skipped",
}


@dataclass(frozen=True)
class NamedToken:
    """A token whose choice of heads is hardly clear, as JSON has it."""

    layer: str
    token: tuple[int, int]
    margin: float


@dataclass(frozen=True)
class NamedSample:
    """A sample with such tokens, as JSON has it."""

    name: str
    tokens: tuple[NamedToken, ...]


@dataclass(frozen=True)
class Searched:
    """The findings of a search of the user's inputs, as JSON has them."""

    searched: int
    choices: int
    too_large: int
    layers_without_margins: tuple[str, ...]
    samples: tuple[NamedSample, ...]


@dataclass(frozen=True)
class Kept:
    """The regression corpus, as JSON has it."""

    samples: int
    bytes: int
    recorded_from: tuple[str, ...]
    smallest_margin: float | None
    written: bool


@dataclass(frozen=True)
class ProbeReport(Report):
    """The answer of `probe`: each case with its verdict, and the corpus.

    Attributes:
        schema_version: Of its JSON; docs/probe.schema.json describes it.
        results: Every case, a routing state once for each layer.
        mining: What the user's inputs gave; None without inputs.
        corpus: The regression corpus of the package as it is now.
        corpus_written: It was written by this run.
        layers: The paths of all layers, in the manifest's order.
        layer_runs: What ran each MoH layer, read from the runtime.
        kernels: The kernel library that was registered, or why none was.
        policy: Where tolerances come from.
        reference: What results are compared with.
    """

    schema_version: Literal[1] = field(default=1, init=False)
    results: tuple[CaseResult, ...]
    mining: Mined | None = field(metadata=HIDDEN)
    corpus: tuple[CorpusSample, ...] = field(metadata=HIDDEN)
    corpus_written: bool = field(metadata=HIDDEN)
    layers: tuple[str, ...] = field(metadata=HIDDEN)
    layer_runs: tuple[LayerRun, ...]
    kernels: KernelUse
    policy: str
    reference: str = field(default=_REFERENCE, init=False)

    def count(self, status: CaseStatus) -> int:
        """Return how many results are of a status."""
        return sum(1 for result in self.results if result.status == status)

    @property
    @in_json()
    def reasons(self) -> tuple[str, ...]:
        """Every sentence on what failed; empty if nothing did and something passed that has
        numbers.

        Inputs that were given to be searched, and could not be, are no pass.
        """
        failed = tuple(result.detail for result in self.results if result.status == "failed")
        passed = [result.case for result in self.results if result.status == "passed"]
        if not failed and not passed:
            return ("no case could be run, so nothing is proven.",)
        if not failed and all(case.startswith(ZERO) for case in passed):
            return ("no case of a size above 0 passed, so nothing is proven.",)
        corpus = [result for result in self.results if result.kind == "corpus"]
        return (*failed, *(case.detail for case in corpus if case.status == "not run"))

    @property
    @in_json()
    def passed(self) -> bool:
        return not self.reasons

    @property
    def failure(self) -> ValidationError | None:
        """The error of a failed probe, if it failed."""
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

    @property
    @in_json("counts")
    def _counts(self) -> dict[CaseStatus, int]:
        return {status: self.count(status) for status in STATUSES}

    @property
    @in_json("mining")
    def _searched(self) -> Searched | None:
        if self.mining is None:
            return None
        found, layers = self.mining, self.layers
        tokens = [
            tuple(NamedToken(layers[t.layer], t.token, t.margin) for t in sample.mined)
            for sample in found.samples
        ]
        samples = tuple(map(NamedSample, found.names, tokens))
        return Searched(found.searched, found.tokens, found.too_large, found.unknown, samples)

    @property
    @in_json("corpus")
    def _kept(self) -> Kept:
        return Kept(
            samples=len(self.corpus),
            bytes=sum(sample.num_bytes for sample in self.corpus),
            recorded_from=tuple(sorted({sample.reference for sample in self.corpus})),
            smallest_margin=min((sample.margin for sample in self.corpus), default=None),
            written=self.corpus_written,
        )

    def document(self) -> doc.Document:
        """Return what it says."""
        groups = groupby(self.results, lambda result: result.kind)
        rows = [row for _, group in groups for row in _rows(list(group))]
        blocks: list[doc.Block] = [doc.Table("edge cases", _COLUMNS, rows, "cases")]
        if self.mining is not None:
            blocks += _mining_blocks(self.layers, self.mining)
        counts = ", ".join(f"{self.count(status)} {status}" for status in STATUSES)
        verdict = doc.Verdict(
            "PASSED" if self.passed else "FAILED",
            self.passed,
            counts,
            (counts,),
            reasons=self.reasons,
            most_reasons=_MOST_REASONS,
        )
        facts = tuple(
            doc.Fact(status, str(self.count(status)), _MEANS[status]) for status in STATUSES
        )
        return doc.Document(
            "probe",
            tuple(blocks),
            verdict,
            facts,
            remarks=tuple(_lines(self)),
            suites=(_suite(self),),
        )


def _lines(report: ProbeReport) -> Iterator[str]:
    yield f"reference: {_REFERENCE}"
    if report.mining is not None:
        searched = count(report.mining.searched, "sample")
        yield f"{searched} searched, {report.mining.tokens} choices of heads"
    size = sum(sample.num_bytes for sample in report.corpus)
    written = "written" if report.corpus_written else "as it was"
    yield f"regression corpus: {count(len(report.corpus), 'sample')}, {size} bytes, {written}"
    yield runs_text(report.layer_runs)
    yield report.kernels.describe()


def _rows(results: Sequence[CaseResult]) -> Iterator[tuple[doc.Cell, ...]]:
    """Fold layers with the same text into one row."""
    folded: dict[tuple[str, str, str], list[CaseResult]] = {}
    for result in results:
        folded.setdefault((result.case, result.status, result.detail), []).append(result)
    for (case, status, detail), group in folded.items():
        places = [case.place for case in group]
        where = places[0] if len(places) == 1 else count(len(places), "layer")
        answer = doc.Status(status, _IS_GOOD.get(group[0].status))
        yield group[0].kind, case, where, answer, detail


def _mining_blocks(layers: Sequence[str], mining: Mined) -> Iterator[doc.Block]:
    pairs = zip(mining.names, mining.samples, strict=True)
    firsts = [(name, token) for name, sample in pairs for token in sample.mined[:1]]
    rows = [
        (
            name,
            layers[t.layer],
            str(list(t.token)),
            doc.Drawn(f"margin {t.margin:.3g}", t.margin),
            t.margin,
        )
        for name, t in firsts
    ]
    columns = ("sample", "layer", "token", doc.Column("margin, drawn", doc.PAGE), "#margin")
    title = "least clear choices in the inputs, one of each sample"
    if rows:
        yield doc.Table(title, columns, rows, "mined", axis="decades")
    if mining.too_large:
        size = f"{MOST_CORPUS_BYTES // 2**20} MiB"
        yield doc.Text(
            f"{count(mining.too_large, 'sample')} of the least clear left out: a corpus has room"
            f" for {size}. Shorter inputs fit."
        )
    if mining.unknown:
        shown = ", ".join(mining.unknown[:_MOST_SHOWN])
        more = len(mining.unknown) - _MOST_SHOWN
        others = f" and {more} more" if more > 0 else ""
        yield doc.Text(f"Margins are not known, or nothing is chosen, in {shown}{others}.")


def _suite(report: ProbeReport) -> doc.CiSuite:
    """Return each case as a test case, and the verdict as one more."""
    said = f"{report.count('passed')} passed" if report.passed else report.reasons[0]
    verdict = doc.CiCase("probe", "verdict", "passed" if report.passed else "failure", said)
    rules, kernels = ("policy", report.policy), ("kernels", report.kernels.describe())
    facts = (("reference", _REFERENCE), rules, kernels)
    cases = [verdict]
    for result in report.results:
        outcome = _OUTCOMES[result.status]
        # What did not run is skipped with its reason, and never passed.
        detail = f"{result.status}: {result.detail}" if outcome == "skipped" else result.detail
        cases.append(doc.CiCase(result.kind, f"{result.case} [{result.place}]", outcome, detail))
    return doc.CiSuite(tuple(cases), facts=facts)
