"""A probe that dies in one case, as a kernel would let it."""

import os
import signal
import tempfile

from moh_deploy.cli.prove import _probed
from moh_deploy.system.progress import Progress
from moh_deploy.validate.edge_cases.input_run import InputJudge
from moh_deploy.validate.edge_cases.report import ProbeReport

_judge, _real_probe = InputJudge.judge, _probed


def dying_probe(task, *, progress: Progress) -> ProbeReport:
    InputJudge.judge = _dying  # type: ignore[method-assign]
    return _real_probe(task, progress=progress)


def _dying(self: InputJudge, state):
    if state.case == "zero: seq=0":
        tempfile.mkdtemp(prefix="dying-probe-")
        os.kill(os.getpid(), signal.SIGSEGV)
    return _judge(self, state)
