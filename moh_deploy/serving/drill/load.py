"""Ask a server from several threads, and compare every answer with the package's own runs."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from moh_deploy.errors import MoHDeployError
from moh_deploy.system.npz import Array
from moh_deploy.validate.compare.output_parity import compare_output
from moh_deploy.validate.compare.policy import BUILT_IN_POLICY
from moh_deploy.validate.compare.tolerances import Tolerance


@dataclass(frozen=True)
class ServerAnswer:
    """An answer of a server; `rung` is empty where it does not say what computed it."""

    outputs: Mapping[str, Array]
    rung: str


class Asking(Protocol):
    """A connection to a server, of one thread."""

    def __call__(self, inputs: Mapping[str, Array]) -> ServerAnswer:
        """Ask, and wait for the answer.

        Raises:
            MoHDeployError: The request failed.
        """

    def close(self) -> None:
        """Close the connection."""


@dataclass(frozen=True)
class LoadCase:
    """A request, and what is right.

    Attributes:
        inputs: Of the request.
        right: Rung to the outputs that it may answer, one set for each way to run it.
    """

    inputs: Mapping[str, Array]
    right: Mapping[str, tuple[Mapping[str, Array], ...]]

    def is_right(self, answered: ServerAnswer, rule: Tolerance) -> bool:
        """Compare an answer by the rule of its outputs' dtypes and of the model's precision."""
        allowed = self.right.get(answered.rung) or tuple(
            one for every in self.right.values() for one in every
        )
        return any(_equal(answered.outputs, one, rule) for one in allowed)


def _equal(got: Mapping[str, Array], right: Mapping[str, Array], rule: Tolerance) -> bool:
    return all(
        compare_output(
            name, "", got.get(name), one, BUILT_IN_POLICY.output_rule(one.dtype.name, rule)
        ).reason
        is None
        for name, one in right.items()
    )


@dataclass(frozen=True)
class Asked:
    """One request.

    Attributes:
        begun, ended: Seconds since 1970.
        outcome: Whether the answer was right; `failed` without one.
        rung: What answered.
        error: What the client was told.
    """

    begun: float
    ended: float
    outcome: Literal["right", "wrong", "failed"]
    rung: str = ""
    error: str = ""


_PAUSE_S = 0.02
"""After a request that failed: a server that is starting again is not to be flooded."""


class Load:
    """Clients that ask one request after the other, each on a thread, until it is closed.

    Args:
        connections: One for each client.
        cases: What they ask, in turns.
        rule: By which answers are right.
        pause_s: How long a client waits between two requests.

    Attributes:
        clients: How many there are.
    """

    def __init__(
        self,
        connections: Sequence[Asking],
        cases: Sequence[LoadCase],
        rule: Tolerance,
        pause_s: float = 0.0,
    ) -> None:
        self.clients = len(connections)
        self._cases = tuple(cases)
        self._rule = rule
        self._pause_s = pause_s
        self._ends = threading.Event()
        self._lock = threading.Lock()
        self._asked: list[Asked] = []
        self._threads = [
            threading.Thread(target=self._client, args=(ask, first), daemon=True)
            for first, ask in enumerate(connections)
        ]
        for one in self._threads:
            one.start()

    def take(self) -> list[Asked]:
        """Return the requests that ended since the last call."""
        with self._lock:
            found, self._asked = self._asked, []
        return found

    def close(self, timeout_s: float = 30.0) -> None:
        """Let every client finish its request, and end."""
        self._ends.set()
        for one in self._threads:
            one.join(timeout_s)

    def _client(self, ask: Asking, first: int) -> None:
        number = first
        while not self._ends.is_set():
            asked = self._ask(ask, self._cases[number % len(self._cases)])
            with self._lock:
                self._asked.append(asked)
            number += 1
            self._ends.wait(_PAUSE_S if asked.outcome == "failed" else self._pause_s)
        ask.close()

    def _ask(self, ask: Asking, case: LoadCase) -> Asked:
        begun = time.time()
        try:
            answered = ask(case.inputs)
        except MoHDeployError as error:
            return Asked(begun, time.time(), "failed", error=error.message)
        ended = time.time()
        outcome = "right" if case.is_right(answered, self._rule) else "wrong"
        return Asked(begun, ended, outcome, answered.rung)  # type: ignore[arg-type]


def served_by(asked: Sequence[Asked]) -> dict[str, int]:
    """Return how many requests each rung answered."""
    return dict(Counter(one.rung or "not said" for one in asked if one.outcome != "failed"))
