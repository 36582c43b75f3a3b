"""A stage of the GPU tests as a list of steps, and what became of each: types without torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
Facts = dict[str, Json]

Status = Literal["passed", "wrong", "failed", "crashed", "hung", "missing", "cut"]
"""passed   measured, or found right
wrong    a result is wrong, or a tool has found something
failed   an exception; after one that the device does not recover from, the worker is replaced
crashed  the process that ran the step is gone
hung     there was no answer in time; the process was killed
missing  this machine lacks what the step needs
cut      there was no time left for it, or its kind has ended too many processes"""

GOOD: tuple[Status, ...] = ("passed", "missing", "cut")


class Wrong(Exception):
    """A result is wrong: the text says where, `facts` what was measured besides."""

    def __init__(self, problem: str, facts: Facts | None = None) -> None:
        super().__init__(problem)
        self.facts = facts or {}


class Missing(Exception):
    """This machine lacks what a step needs: the text says what, and where it comes from."""


@dataclass(frozen=True)
class Step:
    """One measurement or check: lost alone if it goes wrong.

    Attributes:
        name: Unique in its stage, such as `attention/LLaMA-2k/float16/0.75`.
        job: Which function runs it: of tests/gpu/worker.py, or of tests/gpu/tools.py.
        arguments: Of that function.
        expected_s: On the machine that the stages are planned for: 16 cores and one GPU.
        timeout_s: It is killed after that, from the time at which its process has loaded torch.
        fresh: It needs a process in which nothing has run on the device.
    """

    name: str
    job: str
    arguments: Mapping[str, Json] = field(default_factory=dict)
    expected_s: float = 1.0
    timeout_s: float = 30.0
    fresh: bool = False

    @property
    def kind(self) -> str:
        """What its name has in common with those of steps that are likely to fail alike: its first
        two parts, and less than the whole where it has two."""
        first, *others = self.name.split("/")
        return "/".join([first, *others[:-1]][:2])


@dataclass(frozen=True)
class Result:
    """What became of a step.

    Attributes:
        problem: What is wrong; empty if nothing is.
        facts: What was measured.
        ended_worker: The process that ran it is of no use any more.
    """

    step: str
    status: Status
    seconds: float = 0.0
    problem: str = ""
    facts: Facts = field(default_factory=dict)
    ended_worker: bool = False

    def row(self) -> Facts:
        """Return what the report has of it."""
        problem: Facts = {"problem": self.problem} if self.problem else {}
        row = {"step": self.step, "status": self.status, "seconds": round(self.seconds, 3)}
        return finite({**row, **problem, **self.facts})


def finite(facts: Facts) -> Facts:
    """Return facts as JSON can have them: numbers that are none become text."""
    return {name: _finite(value) for name, value in facts.items()}


def _finite(value: Json) -> Json:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return finite(value)
    if isinstance(value, list):
        return [_finite(element) for element in value]
    return value
