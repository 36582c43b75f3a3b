"""Send requests from several threads, and compare every answer with the package's own runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from moh_deploy.errors import MoHDeployError
from moh_deploy.system.npz import Array
from moh_deploy.validate.compare.output_parity import compare_output
from moh_deploy.validate.compare.policy import BUILT_IN_POLICY
from moh_deploy.validate.compare.tolerances import Tolerance

_PAUSE_S = 0.02
"""After a request that failed: a server that starts again is not to be flooded."""


@dataclass(frozen=True)
class ServerAnswer:
    """An answer of a server; `rung` is empty where the server does not name the fallback level."""

    outputs: Mapping[str, Array]
    rung: str


Ask = Callable[[Mapping[str, Array]], ServerAnswer]
"""A connection to a server, of one thread. It raises MoHDeployError where a request fails."""


@dataclass(frozen=True)
class LoadCase:
    """A request, and the right outputs of each fallback level, a set for each way to run it."""

    inputs: Mapping[str, Array]
    right: Mapping[str, tuple[Mapping[str, Array], ...]]

    def is_right(self, answer: ServerAnswer, rule: Tolerance) -> bool:
        """Compare an answer by the rule of its outputs' dtypes and of the model's precision."""
        every = tuple(outputs for allowed in self.right.values() for outputs in allowed)

        def is_equal(name: str, expected: Array) -> bool:
            tolerance = BUILT_IN_POLICY.output_rule(expected.dtype.name, rule)
            found = compare_output(name, "", answer.outputs.get(name), expected, tolerance)
            return found.reason is None

        return any(
            all(is_equal(name, expected) for name, expected in outputs.items())
            for outputs in self.right.get(answer.rung) or every
        )


@dataclass(frozen=True)
class Asked:
    """A request that has ended; times are seconds since 1970."""

    begun: float
    ended: float
    outcome: Literal["right", "wrong", "failed"]
    rung: str = ""  # the fallback level that answered
    error: str = ""


class Load:
    """Clients that send one request after the other, each on a thread, until it is closed.

    Args:
        connections: One for each client.
        cases: Their requests, in turns.
        rule: Decides which answers are right.
    """

    def __init__(
        self, connections: Sequence[Ask], cases: Sequence[LoadCase], rule: Tolerance
    ) -> None:
        self.clients = len(connections)
        self._cases = tuple(cases)
        self._rule = rule
        self._ends = threading.Event()
        self._lock = threading.Lock()
        self._asked: list[Asked] = []
        self._threads = [
            threading.Thread(target=self._client, args=(ask, first), daemon=True)
            for first, ask in enumerate(connections)
        ]
        for thread in self._threads:
            thread.start()

    def take(self) -> list[Asked]:
        """Return the requests that ended since the last call."""
        with self._lock:
            found, self._asked = self._asked, []
        return found

    def close(self, timeout_s: float = 30.0) -> None:
        """Let every client finish its request, and end."""
        self._ends.set()
        for thread in self._threads:
            thread.join(timeout_s)

    def _client(self, ask: Ask, number: int) -> None:
        while not self._ends.is_set():
            asked = self._ask(ask, self._cases[number % len(self._cases)])
            with self._lock:
                self._asked.append(asked)
            number += 1
            if asked.outcome == "failed":
                self._ends.wait(_PAUSE_S)

    def _ask(self, ask: Ask, case: LoadCase) -> Asked:
        begun = time.time()
        try:
            answer = ask(case.inputs)
        except MoHDeployError as error:
            return Asked(begun, time.time(), "failed", error=error.message)
        ended = time.time()
        is_right = case.is_right(answer, self._rule)
        return Asked(begun, ended, "right" if is_right else "wrong", answer.rung)
