"""A process that probes a package and dies in one case, as a kernel would let it."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path

from moh_deploy.cli import probe_apart
from moh_deploy.validate.edge_cases.input_run import InputJudge

_judge = InputJudge.judge


def judge(self: InputJudge, state):
    if state.case == "zero: seq=0":
        tempfile.mkdtemp(prefix="dying-probe-")
        os.kill(os.getpid(), signal.SIGSEGV)
    return _judge(self, state)


if __name__ == "__main__":
    InputJudge.judge = judge  # type: ignore[method-assign]
    probe_apart.carry_out(Path(sys.argv[1]))
