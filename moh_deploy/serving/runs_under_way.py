"""Notice runs that do not end: nobody can stop one, and its instance answers nobody meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable

from moh_deploy.serving.metrics import Family, Series


class RunsUnderWay:
    """The runs that have begun and not ended. Each instance notes its own, on its own thread.

    Args:
        instances: How many there are.
        hung_s: A run that lasts longer is taken for hung.
        clock: Seconds that only go forward.
    """

    def __init__(
        self, instances: int, hung_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.hung_s = hung_s
        self._clock = clock
        self._begun: list[float | None] = [None] * instances

    def begins(self, instance: int) -> None:
        """Note that a run begins; one that the instance had before has ended."""
        self._begun[instance] = self._clock()

    def ends(self, instance: int) -> None:
        """Note that the instance is idle."""
        self._begun[instance] = None

    def hung(self, times: float = 1.0) -> int:
        """Return how many runs have lasted longer than so many times what a run may last."""
        now = self._clock()
        return sum(begun is not None and now - begun > times * self.hung_s for begun in self._begun)

    @property
    def are_all_hung(self) -> bool:
        """Whether no instance is left that could answer."""
        return self.hung() == len(self._begun)

    def families(self) -> tuple[Family, ...]:
        """Return how many hang, as a metric."""
        return (
            Family(
                "moh_hung_runs",
                "Runs that have lasted longer than anybody waits: their instances answer nobody.",
                "gauge",
                (Series({}, self.hung()),),
            ),
        )
