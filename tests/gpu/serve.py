"""A worker's loop: steps come on stdin, results go to where stdout was, a line of JSON each.

The first line that goes out says that the process has loaded what it needs.
"""

import ctypes
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping

from tests.gpu.steps import Facts, Missing, Wrong, finite

Job = Callable[..., Facts]
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def serve(jobs: Mapping[str, Job], is_healthy: Callable[[], str]) -> None:
    """Run steps until stdin ends, or until the device does not recover.

    Args:
        jobs: Each returns what it measured; it may raise `Wrong`, `Missing` or anything else.
        is_healthy: Waits for the device and returns why nothing can run on it any more; empty if
            all is well. An error of the device is thereby seen at the step that made it.
    """
    _end_with_parent()
    # What libraries print goes to stderr: it must not get between the results.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # The device is opened before the first step's time begins. An error is that step's to tell.
    is_healthy()
    replies.write("ready\n")
    replies.flush()
    for line in sys.stdin:
        message = json.loads(line)
        reply = _run(jobs[message["job"]], message["arguments"])
        illness = is_healthy()
        if illness:
            status = "failed" if reply["status"] == "passed" else reply["status"]
            problem = reply["problem"] or illness
            reply |= {"status": status, "problem": problem, "ended_worker": True}
        replies.write(json.dumps(reply, allow_nan=False) + "\n")
        replies.flush()
        if illness:
            os._exit(1)  # destructors would wait for the device


def _end_with_parent() -> None:
    """Let the system end this process with the one that started it, even if it hangs by then."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _run(job: Job, arguments: Mapping[str, object]) -> Facts:
    try:
        return _reply("passed", "", job(**arguments))
    except Wrong as wrong:
        return _reply("wrong", str(wrong), wrong.facts)
    except Missing as missing:
        return _reply("missing", str(missing), {})
    except Exception as error:
        traceback.print_exc()
        return _reply("failed", f"{type(error).__name__}: {error}", {})


def _reply(status: str, problem: str, facts: Facts) -> Facts:
    return {"status": status, "problem": problem, "facts": finite(facts)}
