"""A process of the stand-in for Python behaves as one of Python does."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.nightly import sampled
from tests.warm_python import is_possible

pytestmark = pytest.mark.skipif(not is_possible(), reason="needs Linux")

BOTH = pytest.mark.parametrize("is_warm", [True, False], ids=["warm", "usual"])
LOADED = "import sys; print('moh_deploy.api.verify' in sys.modules)"


@pytest.fixture
def python(is_warm: bool, warm_interpreter: Path) -> str:
    return str(warm_interpreter) if is_warm else sys.executable


def ran(*command: str, **options: object) -> tuple[int, str, str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    return done.returncode, done.stdout, done.stderr.splitlines()[-1] if done.stderr else ""


@BOTH
def test_it_has_arguments_directory_environment_streams_and_open_files(
    python: str, tmp_path: Path, is_warm: bool
):
    code = "import os, sys; print(sys.argv, os.getcwd(), os.environ['GIVEN'], sys.stdin.read());"
    code += "os.write(int(sys.argv[2]), b'to a pipe'); sys.exit(3)"
    reading, writing = os.pipe()
    environment = {**os.environ, "GIVEN": "given"}
    given = {"cwd": tmp_path, "env": environment, "input": "typed", "pass_fds": [writing]}
    ended = ran(python, "-c", code, "a b", str(writing), **given)
    assert ended == (3, f"['-c', 'a b', '{writing}'] {tmp_path} given typed\n", "")
    assert os.read(reading, 99) == b"to a pipe"
    os.close(reading)
    os.close(writing)


@BOTH
def test_it_runs_modules_and_scripts(python: str, tmp_path: Path, is_warm: bool):
    (tmp_path / "beside.py").write_text("NAME = 'beside'")
    script = tmp_path / "script.py"
    script.write_text("import sys, beside; print(beside.NAME, __name__, sys.argv)")
    assert ran(python, str(script), "x")[:2] == (0, f"beside __main__ ['{script}', 'x']\n")
    assert ran(python, "-m", "script", "x", cwd=tmp_path)[:2] == (
        0,
        f"beside __main__ ['{script}', 'x']\n",
    )


@sampled(2)
@BOTH
def test_it_ends_as_it_ends(python: str, is_warm: bool):
    assert ran(python, "-c", "raise ValueError('x')") == (1, "", "ValueError: x")
    killed = ran(python, "-c", "import os; os.kill(os.getpid(), 9)")
    assert killed == (-signal.SIGKILL, "", "")
    code = "import atexit; atexit.register(print, 'at the end')"
    assert ran(python, "-c", code) == (0, "at the end\n", "")


@sampled(3)
@BOTH
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=str)
def test_signals_reach_it(python: str, number: signal.Signals, is_warm: bool):
    code = "import time; print('ready', flush=True); time.sleep(60)"
    with subprocess.Popen(
        [python, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        process.stdout.readline()
        process.send_signal(number)
        assert process.stdout.read() == ""  # nobody has the stream any more: it is gone
    assert process.returncode == -number


def test_modules_are_there_unless_options_are_given(warm_interpreter: Path):
    assert ran(str(warm_interpreter), "-c", LOADED)[:2] == (0, "True\n")
    assert ran(str(warm_interpreter), "-s", "-c", LOADED)[:2] == (0, "False\n")
    assert ran(sys.executable, "-c", LOADED)[:2] == (0, "False\n")
