"""The outcome of a comparison, down to each output and layer of each vector set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Literal, Self

from moh_deploy.config.dtypes import FEW_BITS
from moh_deploy.errors import ValidationError
from moh_deploy.package import Spread
from moh_deploy.report.baseline.result import RatchetResult
from moh_deploy.report.report import FLAT, HIDDEN, in_json, shown_verdict
from moh_deploy.runtime.kernel_use import KernelUse
from moh_deploy.runtime.layer_runs import LayerRun
from moh_deploy.validate.accuracy.metric_parity import MetricParity
from moh_deploy.validate.compare.checks import Check, Flips, Top1Agreement
from moh_deploy.validate.compare.routing_statistics import NO_STATISTICS, RoutingStatistics
from moh_deploy.validate.compare.tolerances import BUILT_IN, Tolerance
from moh_deploy.validate.reference.differences import worst
from moh_deploy.validate.reference.valid_tokens import ValidTokens

JudgedBy = Literal["choices", "scores", "nothing"]
ParityVerdict = Literal["equal", "within tolerance", "not equal", "cannot tell"]
LayerPart = Literal["scores", "choice", "gates", "attention"]
"""Of what is compared of a layer, in the order in which it is computed."""


@dataclass(frozen=True)
class OutputParity:
    """One output in one vector set."""

    name: str
    vectors: str  # which vector set: its number and sizes, or the user's file
    max_abs_error: float  # largest |got - reference|; NaN if either holds one
    max_rel_error: float  # the same, as a share of the largest |reference|
    # The largest `max_abs_error` that counts as equal; None behind an explained flip: there it must
    # be finite, and the entry with forced routing is the one that is judged.
    tolerance: float | None
    reason: str | None = None  # a sentence on why it is not equal; None if it is
    # The error that rounding noise of the model's precision makes; None if not measured.
    floor: float | None = None
    forced: bool = False  # the reference gates were fed to every layer
    elements: int | None = None  # how many numbers were compared; None where they cannot be
    # Root mean square of got - reference; None where they cannot be compared.
    rms_error: float | None = None
    # The largest `rms_error` that counts as equal; None where it is not judged.
    rms_tolerance: float | None = None
    # Rows with the same top-1 class, where the output looks like logits of classes.
    top_1: Top1Agreement | None = None


@dataclass(frozen=True)
class LayerParity:
    """One layer's routing in one vector set."""

    path: str
    vectors: str
    decisions: int  # (token, head) pairs compared, tokens with a near-tie left out
    equal_decisions: int  # those of them where both select the head, or both do not
    flipped_tokens: int  # tokens without a near-tie that chose other heads: unexplained
    excused_tokens: int  # tokens with a near-tie that chose other heads: explained by rounding
    gate_error: float  # largest |got - reference| among the gates that both select
    gate_tolerance: float  # the largest `gate_error` that counts as equal
    reason: str | None = None  # a sentence on why it is not equal; None if it is
    # The reference gates were fed to every layer before this one, so what differs is made by this
    # layer's router or by kernels, not by another choice before it.
    forced: bool = False
    # Tokens that chose other heads when the model was left to itself; None where `forced` is false,
    # and the figures above say it.
    free_flips: int | None = None
    agreement: float | None = None  # share of equal (token, head) decisions of all tokens
    # Mean over tokens of heads that both chose to heads that either chose.
    jaccard: float | None = None
    smallest_margin: float | None = None  # of all tokens
    # The largest of the tokens that chose other heads; None without any.
    flip_margin: float | None = None
    margin_bound: float | None = None  # rounding explains flips of tokens with a smaller margin
    # Where the router ranks nothing and the floor is known: by how much gates may differ, so that a
    # head that opens or closes within it is no flip. 0 elsewhere.
    near_zero: Spread = field(default=Spread(0.0, 0.0), metadata=HIDDEN)
    # Root mean square of the differences of the ranked scores; None where they are not known on
    # both sides.
    score_error: float | None = None
    # The largest `score_error` that counts as equal; or None.
    score_tolerance: float | None = None
    # The same of the fingerprints of what the attention computed, as a share of their size.
    attention_error: float | None = None
    attention_tolerance: float | None = None  # the largest `attention_error` that counts as equal
    # Tokens with a near-tie that chose other heads, where it is unknown whether the tie
    # explains it.
    undecided_tokens: int = 0
    # What the verdict on the router rests on: the choices of heads, or, where most tokens are near
    # ties, the scores; `nothing` where there is no token.
    judged_by: JudgedBy = "choices"
    wrong: tuple[LayerPart, ...] = ()  # what is not equal, in the order in which it is computed

    @property
    def own_flips(self) -> int:
        """Return the number of tokens that chose other heads in the free run."""
        return (self.free_flips or 0) if self.forced else self.other_heads

    @property
    def other_heads(self) -> int:
        """Return the number of tokens that chose other heads in this run."""
        return self.flipped_tokens + self.excused_tokens + self.undecided_tokens

    @property
    def no_data(self) -> bool:
        """Nothing is known to be wrong, and it cannot be said that all is equal."""
        return self.judged_by == "nothing" or (self.undecided_tokens > 0 and not self.wrong)


@dataclass(frozen=True)
class TokenCount:
    """The number of tokens in all runs, and of those left out as padding by a mask."""

    name: str
    tokens: int
    left_out: int

    def describe(self) -> str:
        """Return the sentence that reports show."""
        return (
            f"{self.left_out} of {self.tokens} tokens are padding by '{self.name}', and were not"
            " compared."
        )


def count_tokens(masks: Sequence[ValidTokens]) -> TokenCount | None:
    """Count the tokens, and those that are left out; None without masks."""
    counts = [TokenCount(mask.name, mask.mask.size, int((~mask.mask).sum())) for mask in masks]
    return added_tokens(counts)


def added_tokens(counts: Sequence[TokenCount]) -> TokenCount | None:
    """Return the sum; None of none."""
    if not counts:
        return None
    tokens = sum(count.tokens for count in counts)
    return TokenCount(counts[0].name, tokens, sum(count.left_out for count in counts))


@dataclass(frozen=True)
class ParityResult:
    """The comparison of a runtime with the reference.

    In JSON, outputs and layers are those of all comparisons, each with its reference.
    """

    # Of its JSON; docs/verify.schema.json describes it.
    schema_version: Literal[1] = field(default=1, init=False)
    reference: str  # where the expected values come from
    vector_sets: int  # how many runs were compared
    # One entry for each output of each run.
    outputs: tuple[OutputParity, ...] = field(metadata=HIDDEN)
    # One entry for each MoH layer of each run whose gates are known.
    layers: tuple[LayerParity, ...] = field(metadata=HIDDEN)
    has_routing: bool = field(metadata=HIDDEN)
    kernel_nodes: int  # how many MoH nodes ran on a kernel, read from the runtime
    function_nodes: int  # how many ran as their function body
    layer_runs: tuple[LayerRun, ...]  # what ran each MoH layer, read from the runtime
    kernels: KernelUse  # the kernel library that was registered, or why none was
    # The tolerances that applied, by dtype.
    rules: Mapping[str, Tolerance] = field(default_factory=dict)
    policy: str = BUILT_IN  # where they come from: the built-in table, or a file
    # What was found out by feeding the reference gates, and what could not be.
    notes: tuple[str, ...] = ()
    statistics: RoutingStatistics = NO_STATISTICS  # loads of heads and margins of choices
    # How many were left out, being padding; None if it was not said which are.
    tokens: TokenCount | None = field(default=None, metadata=HIDDEN)
    subject: str = field(default="", metadata=HIDDEN)  # what ran; empty where that is plain
    # Of a report that joins several comparisons, each by itself.
    parts: tuple[ParityResult, ...] = field(default=(), metadata=HIDDEN)
    # How it compares with a baseline file; None without one, or if it is not equal.
    ratchet: RatchetResult | None = None
    accuracy: tuple[MetricParity, ...] = ()  # metrics of a task, where there are labels
    precision: str = "float32"
    checks: tuple[Check, ...] = ()  # what else was judged: stored weights, conditions on flips

    @property
    def comparisons(self) -> tuple[ParityResult, ...]:
        """Every comparison by itself: two sides, and what was compared of them."""
        return self.parts or (self,)

    def with_token_notes(self) -> Self:
        """Say in the notes which tokens were left out."""
        if self.tokens is None:
            return self
        return replace(self, notes=(self.tokens.describe(), *self.notes))

    @property
    @in_json()
    def reasons(self) -> tuple[str, ...]:
        """Every sentence on what is not equal; empty if all is."""
        if self.parts:
            # Those of other references begin with theirs.
            told = {part.reference: f"against {part.reference}: " for part in self.parts}
            told[self.reference] = ""
            return tuple(
                told[part.reference] + text for part in self.parts for text in part.reasons
            )
        if not self.vector_sets:
            return ("there are no vectors to compare with, so nothing is proven.",)
        if self.outputs and all(output.elements == 0 for output in self.outputs):
            padding = "" if self.tokens is None else f" {self.tokens.describe()}"
            return (f"no output holds anything to compare, so nothing is proven.{padding}",)
        entries: tuple[OutputParity | LayerParity | MetricParity | Check, ...]
        entries = (*self.checks, *self.accuracy, *self.outputs, *self.layers)
        wrong = tuple(entry.reason for entry in entries if entry.reason is not None)
        none = "no data. No token of it was left to compare, in any vector set."
        return (*wrong, *(f"layer '{path}': {none}" for path in self.unjudged_layers))

    @property
    def unjudged_layers(self) -> tuple[str, ...]:
        """Paths of layers that no vector set could judge."""
        judged = {layer.path for layer in self.layers if layer.judged_by != "nothing"}
        return tuple(dict.fromkeys(layer.path for layer in self.layers if layer.path not in judged))

    @property
    @in_json()
    def equal(self) -> bool:
        return not self.reasons

    @property
    @in_json()
    def verdict(self) -> ParityVerdict:
        """The answer. Packages in few bits are never equal, but within tolerance. `cannot tell`
        is no pass: nothing is known to be wrong, and too little of samples or ties is known."""
        if self.equal:
            return "within tolerance" if self.in_few_bits else "equal"
        return (
            "not equal"
            if any(comparison._is_wrong for comparison in self.comparisons)
            else "cannot tell"
        )

    @property
    def answer(self) -> str:
        """The verdict as reports show it: EQUAL, WITHIN TOLERANCE (int4)."""
        precision = f" ({self.precision})" if self.verdict == "within tolerance" else ""
        return f"{shown_verdict(self.verdict).upper()}{precision}"

    @property
    def in_few_bits(self) -> bool:
        """Tell whether the weights of the package are in few bits, as in int4."""
        return self.precision in FEW_BITS

    @property
    def _is_wrong(self) -> bool:
        """Something is known not to be equal, or nothing was run; what cannot be told is not."""
        known: tuple[OutputParity | LayerParity | MetricParity | Check, ...] = (
            *self.outputs,
            *(layer for layer in self.layers if not layer.no_data),
            *(metric for metric in self.accuracy if metric.verdict != "cannot tell"),
            *(check for check in self.checks if check.verdict != "cannot tell"),
        )
        return not self.vector_sets or any(output.reason is not None for output in known)

    @property
    @in_json()
    def max_abs_error(self) -> float:
        """Largest error of any output that is judged; NaN if anything is NaN."""
        return worst(
            output.max_abs_error
            for output in self.outputs
            if output.tolerance is not None or output.reason is not None
        )

    @property
    @in_json()
    def routing_agreement(self) -> float | None:
        """Share of equal (token, head) decisions, near-ties left out; 1.0 without layers, None if
        gates were not compared."""
        if not self.has_routing:
            return None
        decisions = sum(layer.decisions for layer in self.layers)
        if not decisions:
            return float(not any(layer.reason for layer in self.layers))
        return sum(layer.equal_decisions for layer in self.layers) / decisions

    @property
    @in_json()
    def top_1(self) -> Mapping[str, Top1Agreement]:
        """Rows of outputs that look like logits with the same top-1, of the first comparison."""
        found: dict[str, Top1Agreement] = {}
        for output in self.comparisons[0].outputs:
            if output.top_1 is not None and not output.forced:
                found[output.name] = output.top_1 + found.get(output.name, Top1Agreement(0, 0))
        return found

    @property
    @in_json()
    def flips(self) -> Flips | None:
        """Tokens that chose other heads, of the first comparison; None without gates."""
        first = self.comparisons[0]
        of = sum(load.tokens for load in first.statistics.head_loads)
        return Flips(sum(o.own_flips for o in first.layers), of) if first.has_routing else None

    @property
    def failure(self) -> ValidationError | None:
        """The error that says the answer is no; None if all is equal, and no worse than it was."""
        if self.equal:
            return None if self.ratchet is None else self.ratchet.failure
        first, *others = self.reasons
        more = f" ({len(others)} more)" if others else ""
        notes = "".join(f" {note}" for note in self.notes)
        answer = "not equal to the reference" if self.verdict == "not equal" else "inconclusive"
        return ValidationError(f"{answer}: {first}{more}{notes}")

    def raise_if_unequal(self) -> None:
        """Raise the failure, if there is one.

        Raises:
            ValidationError: Something is not equal, or worse than in the baseline file.
        """
        if self.failure is not None:
            raise self.failure

    # JSON has the entries of all comparisons in one list, each with its reference: readers of
    # one comparison only find them in the same place.

    @property
    @in_json("comparisons")
    def _compared(self) -> tuple[ComparisonSummary, ...]:
        return tuple(map(ComparisonSummary.of, self.comparisons))

    @property
    @in_json("outputs")
    def _all_outputs(self) -> tuple[OutputEntry, ...]:
        return tuple(
            OutputEntry(p.reference, output) for p in self.comparisons for output in p.outputs
        )

    @property
    @in_json("layers")
    def _all_layers(self) -> tuple[LayerEntry, ...]:
        return tuple(LayerEntry(p.reference, layer) for p in self.comparisons for layer in p.layers)


@dataclass(frozen=True)
class OutputEntry:
    """An output of one of several comparisons, as JSON has it."""

    reference: str
    entry: OutputParity = field(metadata=FLAT)


@dataclass(frozen=True)
class LayerEntry:
    """A layer of one of several comparisons, as JSON has it."""

    reference: str
    entry: LayerParity = field(metadata=FLAT)


@dataclass(frozen=True)
class ComparisonSummary:
    """A comparison without its outputs and layers, as JSON has it."""

    subject: str
    reference: str
    equal: bool
    verdict: ParityVerdict
    has_routing: bool
    vector_sets: int
    max_abs_error: float
    routing_agreement: float | None
    notes: tuple[str, ...]
    reasons: tuple[str, ...]
    tokens: TokenCount | None
    top_1: Mapping[str, Top1Agreement]
    flips: Flips | None
    checks: tuple[Check, ...]

    @classmethod
    def of(cls, report: ParityResult) -> ComparisonSummary:
        """Return what JSON has of a comparison."""
        return cls(**{field_.name: getattr(report, field_.name) for field_ in fields(cls)})
