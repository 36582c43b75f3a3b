from __future__ import annotations

import gc
import os
import subprocess
import sys

from moh_deploy.system.isolate import isolated


def test_the_command_collects_rarely():
    code = "import gc; from moh_deploy.__main__ import _load; _load(); print(gc.get_threshold()[0])"
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    ).stdout
    assert int(said) == 10_000


def test_its_own_processes_do_so_too():
    found = isolated(gc.get_threshold)
    assert found.answer is not None
    assert found.answer[0] == 10_000
