"""The environment with Triton's server and clients, made once: it wants another numpy than ours."""

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from moh_deploy.serving.triton.server import TritonServer, find_server
from tests.kept_builds import BUILDS, ROOT, build_once, digest_of

REQUIREMENTS = ROOT / "examples" / "serving" / "server-requirements.txt"
# Builds dashboards of what it has types for: a key that it does not know gets lost.
FOR_TESTS = ("grafana-foundation-sdk==1769699681!11.1.0",)
ENVIRONMENT = BUILDS / "triton-server"


def server_or_skip() -> TritonServer:
    """Return the server; skip the test where it cannot be had."""
    problem = _problem()
    if problem is not None:
        pytest.skip(f"no Triton server: {problem}")
    server = find_server(ENVIRONMENT)
    assert server is not None, "the wheel holds one"
    return server


def python_or_skip() -> Path:
    """Return the environment's Python; skip the test where it cannot be had."""
    server_or_skip()
    return ENVIRONMENT / "bin" / "python"


@cache
def _problem() -> str | None:
    """Make the environment, unless it is there; return why it cannot be made."""
    if sys.platform != "linux":
        return f"its wheel is for Linux, this is {sys.platform}"
    try:
        build_once(ENVIRONMENT / "made", digest_of([REQUIREMENTS], FOR_TESTS), _make)
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"{error}"
    return None


def _make() -> None:
    _run(sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT))
    pip = [str(ENVIRONMENT / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    _run(*pip, "-r", str(REQUIREMENTS), *FOR_TESTS)
    (ENVIRONMENT / "made").touch()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
