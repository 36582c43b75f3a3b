"""What a drill found: wrong answers that got out, failed requests, time to trip and to return."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from moh_deploy.errors import ValidationError
from moh_deploy.report.document import (
    CiCase,
    CiSuite,
    Column,
    Document,
    Fact,
    Status,
    Table,
    Verdict,
)
from moh_deploy.report.formats import NOT_TERMINAL
from moh_deploy.report.json import HIDDEN, in_json
from moh_deploy.report.numbers import count
from moh_deploy.report.report import Report
from moh_deploy.runtime.kernel_use import KernelUse
from moh_deploy.serving.guard.faults import UNSEEN

DrillOutcome = Literal["held", "failed", "cannot be seen", "no fault"]

NOTHING = "none, before"
"""How the load before any fault is called."""


@dataclass(frozen=True)
class FaultDrill:
    """One fault, from when it was planted to when the first rung served again.

    Attributes:
        fault: What was planted; `kill` ends the worker.
        requests: How many were answered or failed meanwhile.
        wrong: Answers that are not the package's own.
        failed: Requests that got an error, or no answer.
        failures: What the first failed ones were told.
        seconds_to_trip: From planting until the guard's log has it; None: it never had.
        seconds_to_return: From the end of the fault until the first rung served again; None: it did
            not in time, or had never left.
        reason: What the log says of why.
        moved: Another rung served meanwhile.
        served: How many requests each rung answered.
    """

    fault: str
    requests: int
    wrong: int
    failed: int
    failures: tuple[str, ...]
    seconds_to_trip: float | None
    seconds_to_return: float | None
    reason: str | None
    moved: bool
    served: Mapping[str, int]

    @property
    @in_json()
    def outcome(self) -> DrillOutcome:
        """Whether the guard held: no wrong answer got out, and the first rung came back.

        A fault that leaves finite, wrong answers cannot be seen while they are given: it is not
        judged, and said.
        """
        if self.fault == NOTHING:
            return "no fault"
        if self.fault in UNSEEN:
            return "cannot be seen"
        returned = not self.moved or self.seconds_to_return is not None
        noticed = self.reason is not None or self.fault == "kill"
        return "held" if not self.wrong and returned and noticed else "failed"

    @property
    @in_json()
    def sentence(self) -> str:
        """What happened, in words."""
        if self.fault == NOTHING:
            return f"without any fault: {count(self.requests, 'request')}."
        if self.fault in UNSEEN:
            seen = (
                f" A spot check found it after {self.seconds_to_trip:.2f} s."
                if self.seconds_to_trip is not None
                else " Nothing found it: `spot_checks` of the policy are what can."
            )
            return (
                f"{self.fault}: answers that are finite and wrong cannot be told from right ones"
                f" while they are given; {self.wrong} of {count(self.requests, 'answer')} got"
                f" out.{seen}"
            )
        if self.wrong:
            return f"{self.fault}: {count(self.wrong, 'wrong answer')} got out."
        if self.reason is None and self.fault != "kill":
            return f"{self.fault}: the guard did not notice it; has the policy a limit for it?"
        if self.fault == "kill" and self.seconds_to_return is None:
            return (
                "kill: no worker answered again in time: something else has to restart it. It said"
                f" {'; '.join(self.failures) or 'nothing'}"
            )
        if self.moved and self.seconds_to_return is None:
            return f"{self.fault}: the first rung did not come back in time."
        return f"{self.fault}: no wrong answer, {count(self.failed, 'failed request')}."


@dataclass(frozen=True)
class DrillReport(Report):
    """The report of a drill: what clients saw while a server was broken on purpose.

    Attributes:
        schema_version: Of its JSON.
        subject: What was served.
        server: By what.
        policy: The guard's policy: a file, or what the drill takes.
        clients: How many asked at the same time.
        seconds: How long each fault stayed.
        before: The same figures of the load before any fault.
        faults: One entry for each that was planted.
        kernels: The kernel library of the package here.
    """

    schema_version: Literal[1] = field(default=1, init=False)
    subject: str
    server: str
    policy: str
    clients: int
    seconds: float
    before: FaultDrill
    faults: tuple[FaultDrill, ...]
    kernels: KernelUse = field(metadata=HIDDEN)

    @property
    @in_json()
    def passed(self) -> bool:
        return not self.reasons

    @property
    @in_json()
    def reasons(self) -> tuple[str, ...]:
        """Every sentence on what did not hold."""
        return tuple(self._reasons())

    def _reasons(self) -> Iterator[str]:
        before = self.before
        if not before.requests:
            yield "no request was answered before any fault: nothing is proven."
        if before.wrong or before.failed:
            yield (
                f"without any fault {before.wrong} answers were wrong and {before.failed} requests"
                f" failed: {'; '.join(before.failures) or 'they differ from the package'}."
            )
        yield from (one.sentence for one in self.faults if one.outcome == "failed")

    @property
    def failure(self) -> ValidationError | None:
        """The error that says that the guard did not hold; None if it did."""
        if self.passed:
            return None
        return ValidationError(f"the guard did not hold: {' '.join(self.reasons)}")

    def document(self) -> Document:
        """Return one page of it."""
        requests = self.before.requests + sum(one.requests for one in self.faults)
        wrong = sum(one.wrong for one in self.faults if one.outcome != "cannot be seen")
        judged = [one for one in self.faults if one.outcome != "cannot be seen"]
        held = tuple(one.sentence for one in judged if one.outcome == "held")
        unseen = tuple(one.sentence for one in self.faults if one.outcome == "cannot be seen")
        sentence = (
            f"{count(len(judged), 'fault')} that can be seen, {count(requests, 'request')} by"
            f" {count(self.clients, 'client')}: {count(wrong, 'wrong answer')} got out."
        )
        verdict = Verdict(
            "HELD" if self.passed else "DID NOT HOLD",
            self.passed,
            sentence,
            (sentence,),
            held=held,
            reasons=self.reasons,
        )
        rows = [_row(one) for one in (self.before, *self.faults)]
        table = Table("what clients saw", _COLUMNS, rows, id="faults")
        trips = [one.seconds_to_trip for one in judged if one.seconds_to_trip is not None]
        returns = [one.seconds_to_return for one in judged if one.seconds_to_return is not None]
        facts = (
            Fact("wrong answers", f"{wrong}", "that got out, of faults that can be seen"),
            Fact("failed requests", f"{sum(one.failed for one in self.faults)}", f"of {requests}"),
            Fact("to trip", f"{max(trips):.2f} s" if trips else "–", "the longest"),
            Fact("to return", f"{max(returns):.2f} s" if returns else "–", "the longest"),
        )
        cases = tuple(
            CiCase(
                "drill",
                one.fault,
                "failure" if one.outcome == "failed" else "passed",
                one.sentence,
            )
            for one in self.faults
        )
        whole = CiCase("drill", "verdict", "passed" if self.passed else "failure", sentence)
        return Document(
            "drill",
            (table,),
            verdict,
            facts=facts,
            findings=unseen,
            remarks=(f"Served by {self.server}; policy: {self.policy}.",),
            suites=(CiSuite((whole, *cases)),),
        )


_COLUMNS = (
    "fault",
    "outcome",
    "#requests",
    "#wrong",
    "#failed",
    "#trip s",
    "#return s",
    Column("why it tripped", NOT_TERMINAL, width="words"),
    Column("answered by", width="words"),
)


def _row(one: FaultDrill) -> tuple[str | int | float | Status | None, ...]:
    good = {"held": True, "failed": False}.get(one.outcome)
    served = ", ".join(f"{name} {number}" for name, number in one.served.items())
    return (
        one.fault,
        Status(one.outcome, good),
        one.requests,
        one.wrong,
        one.failed,
        one.seconds_to_trip,
        one.seconds_to_return,
        one.reason,
        served,
    )
