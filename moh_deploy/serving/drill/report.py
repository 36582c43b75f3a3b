"""The report of a drill: wrong answers, failed requests, time to trip and to return."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from moh_deploy.errors import ValidationError
from moh_deploy.report import document as doc
from moh_deploy.report.json import HIDDEN, in_json
from moh_deploy.report.numbers import count
from moh_deploy.report.report import Report
from moh_deploy.runtime.kernel_use import KernelUse
from moh_deploy.serving.guard.faults import UNSEEN

DrillOutcome = Literal["held", "failed", "cannot be seen", "no fault"]

NOTHING = "none, before"
"""The name of the load before any fault."""


@dataclass(frozen=True)
class FaultDrill:
    """One fault, from when it was planted to when the first level served again.

    The times are None where the guard's log never had it, or the first level did not come back in
    time. Where it never left, there is no time to return either.
    """

    fault: str
    requests: int
    wrong: int  # answers that are not the package's own
    failed: int  # requests that got an error, or no answer
    failures: tuple[str, ...]  # the first errors
    seconds_to_trip: float | None = None
    seconds_to_return: float | None = None
    reason: str | None = None  # in the log
    moved: bool = False  # another level served meanwhile
    served: Mapping[str, int] = field(default_factory=dict)  # fallback level to its requests

    @property
    @in_json()
    def outcome(self) -> DrillOutcome:
        """Whether the guard held: no wrong answer was given, and the first level came back.

        Finite, wrong answers look right when they are given: such a fault is not judged.
        """
        if self.fault == NOTHING:
            return "no fault"
        if self.fault in UNSEEN:
            return "cannot be seen"
        returned = not self.moved or self.seconds_to_return is not None
        return "held" if not self.wrong and returned and self.reason is not None else "failed"

    @property
    @in_json()
    def sentence(self) -> str:
        """What happened, in words."""
        if self.fault == NOTHING:
            return f"without any fault: {count(self.requests, 'request')}."
        if self.fault in UNSEEN:
            seen = "Nothing found it: `spot_checks` of the policy can."
            if self.seconds_to_trip is not None:
                seen = f"A spot check found it after {self.seconds_to_trip:.2f} s."
            return (
                f"{self.fault}: answers that are finite and wrong look right when they are given;"
                f" {self.wrong} of {count(self.requests, 'answer')} got out. {seen}"
            )
        if self.wrong:
            return f"{self.fault}: {count(self.wrong, 'wrong answer')} got out."
        if self.reason is None:
            return f"{self.fault}: the guard did not notice it; has the policy a limit for it?"
        if self.fault == "kill" and self.seconds_to_return is None:
            return (
                "kill: no worker answered again in time: something else has to restart it. Its"
                f" last errors: {'; '.join(self.failures) or 'none'}"
            )
        if self.moved and self.seconds_to_return is None:
            return f"{self.fault}: the first level did not come back in time."
        return f"{self.fault}: no wrong answer, {count(self.failed, 'failed request')}."


@dataclass(frozen=True)
class DrillReport(Report):
    """The report of a drill: what clients saw while a server was broken on purpose."""

    schema_version: Literal[1] = field(default=1, init=False)  # of its JSON
    subject: str  # the served package
    server: str  # what served it
    policy: str  # the guard's policy: a file, or the drill's own
    clients: int  # how many sent requests at the same time
    seconds: float  # how long each fault stayed
    before: FaultDrill  # the same figures of the load before any fault
    faults: tuple[FaultDrill, ...]  # one entry for each that was planted
    kernels: KernelUse = field(metadata=HIDDEN)  # the kernel library of the package here

    @property
    @in_json()
    def passed(self) -> bool:
        return not self.reasons

    @property
    @in_json()
    def reasons(self) -> tuple[str, ...]:
        """Why the guard did not hold."""
        before, reasons = self.before, []
        if not before.requests:
            reasons.append("no request was answered before any fault: nothing is proven.")
        if before.wrong or before.failed:
            reasons.append(
                f"without any fault {before.wrong} answers were wrong and {before.failed} requests"
                f" failed: {'; '.join(before.failures) or 'they differ from the package'}."
            )
        failed = (drilled.sentence for drilled in self.faults if drilled.outcome == "failed")
        return (*reasons, *failed)

    @property
    def failure(self) -> ValidationError | None:
        """The error that says that the guard did not hold; None if it did."""
        if self.passed:
            return None
        return ValidationError(f"the guard did not hold: {' '.join(self.reasons)}")

    def document(self) -> doc.Document:
        """Return one page of it."""
        every = (self.before, *self.faults)
        judged = [drilled for drilled in self.faults if drilled.outcome != "cannot be seen"]
        requests = sum(drilled.requests for drilled in every)
        wrong = sum(drilled.wrong for drilled in judged)
        sentence = (
            f"{count(len(judged), 'fault')} that can be seen, {count(requests, 'request')} by"
            f" {count(self.clients, 'client')}: {count(wrong, 'wrong answer')} got out."
        )
        verdict = doc.Verdict(
            "HELD" if self.passed else "DID NOT HOLD",
            self.passed,
            sentence,
            (sentence,),
            held=tuple(drilled.sentence for drilled in judged if drilled.outcome == "held"),
            reasons=self.reasons,
        )
        facts = (
            doc.Fact("wrong answers", f"{wrong}", "that got out, of faults that can be seen"),
            doc.Fact("failed requests", f"{sum(d.failed for d in self.faults)}", f"of {requests}"),
            doc.Fact("to trip", _longest(d.seconds_to_trip for d in judged), "the longest"),
            doc.Fact("to return", _longest(d.seconds_to_return for d in judged), "the longest"),
        )
        cases = [doc.CiCase("drill", "verdict", "passed" if self.passed else "failure", sentence)]
        for d in self.faults:
            is_good = d.outcome != "failed"
            cases.append(
                doc.CiCase("drill", d.fault, "passed" if is_good else "failure", d.sentence)
            )
        return doc.Document(
            "drill",
            (doc.Table("what clients saw", _COLUMNS, list(map(_row, every)), id="faults"),),
            verdict,
            facts=facts,
            findings=tuple(d.sentence for d in self.faults if d.outcome == "cannot be seen"),
            remarks=(f"Served by {self.server}; policy: {self.policy}.",),
            suites=(doc.CiSuite(tuple(cases)),),
        )


_COLUMNS = (
    *("fault", "outcome", "#requests", "#wrong", "#failed", "#trip s", "#return s"),
    doc.Column("why it tripped", doc.NOT_TERMINAL, width="words"),
    doc.Column("answered by", width="words"),
)


def _row(drilled: FaultDrill) -> tuple[str | int | float | doc.Status | None, ...]:
    return (
        drilled.fault,
        doc.Status(drilled.outcome, {"held": True, "failed": False}.get(drilled.outcome)),
        *(drilled.requests, drilled.wrong, drilled.failed),
        *(drilled.seconds_to_trip, drilled.seconds_to_return, drilled.reason),
        ", ".join(f"{name} {number}" for name, number in drilled.served.items()),
    )


def _longest(seconds: Iterator[float | None]) -> str:
    longest = max((each for each in seconds if each is not None), default=None)
    return "–" if longest is None else f"{longest:.2f} s"
