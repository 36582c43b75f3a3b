"""Telemetry of a package that answers random gates, for tests of drift."""

from __future__ import annotations

import numpy as np

from moh_deploy.package import OnnxPackage
from moh_deploy.serving import ServedRun
from moh_deploy.serving.metrics import exposition
from moh_deploy.serving.telemetry import Telemetry
from tests.edge_case_package import HEADS, inputs


class RandomGates:
    """Telemetry of a package of edge cases, every run of which is read."""

    def __init__(self, package: OnnxPackage, *, per_head: bool = True, seed: int = 0) -> None:
        self.telemetry = Telemetry(package, model="m", sample_every=1, per_head=per_head)
        self._rng = np.random.default_rng(seed)

    def answer(self, times: int, *, closed: int | None = None) -> None:
        """Answer so many requests; `closed` is a head that is on for no token."""
        for _ in range(times):
            given, dims = inputs(batch=1), {"batch": 1, "seq": 5}
            self.telemetry.wanted(dims)
            values = {
                name: self._rng.random((1, 5, HEADS), np.float32) for name in self.telemetry.inner
            }
            if closed is not None:
                for one in values.values():
                    one[..., closed] = 0
            self.telemetry.saw(ServedRun(given, dims, values, (1,), 0.001, "kernels"))

    def text(self) -> str:
        return exposition(self.telemetry.families())[0]
