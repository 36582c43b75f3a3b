"""Finding and starting a server, with scripts that stand for one."""

import errno
import sys
from pathlib import Path

import pytest

import moh_deploy
from moh_deploy.errors import BackendError
from moh_deploy.serving.triton import server as server_module
from moh_deploy.serving.triton.server import (
    PYTHON,
    TritonServer,
    find_server,
    python_of_stub,
    running_server,
)

READY = """#!{python}
import http.server, sys
port = next(text.partition("=")[2] for text in sys.argv if text.startswith("--http-port="))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *given):
        pass
print("serving", flush=True)
http.server.HTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
"""


def install(root: Path, script: str = "#!/bin/sh\n") -> Path:
    """Make a folder that looks like a server; the script is its program."""
    program = root / "bin" / "tritonserver"
    program.parent.mkdir(parents=True)
    program.write_text(script)
    program.chmod(0o755)
    stub = root / "python_backend_stubs" / PYTHON / "triton_python_backend_stub"
    stub.parent.mkdir(parents=True)
    stub.write_text(f"\0libpython{PYTHON}.so.1.0\0")
    (root / "backends" / "python").mkdir(parents=True)
    return root


def test_server_is_found_in_a_folder_in_an_environment_and_on_path(tmp_path: Path, monkeypatch):
    folder = install(tmp_path / "folder")
    environment = tmp_path / "environment"
    packages = environment / "lib" / "python3.11" / "site-packages"
    packed = install(packages / "pytriton" / "tritonserver")
    assert find_server(folder) == TritonServer(folder)
    assert find_server(environment) == TritonServer(packed)
    assert find_server(tmp_path) is None
    monkeypatch.setenv("PATH", str(folder / "bin"))
    assert find_server() == TritonServer(folder)


def test_its_backends_are_listed(tmp_path: Path):
    assert TritonServer(install(tmp_path / "s")).backends == ("python",)
    assert TritonServer(tmp_path / "none").backends == ()


def test_server_runs_until_the_block_ends(tmp_path: Path):
    server = TritonServer(install(tmp_path / "s", READY.format(python=sys.executable)))
    with running_server(server, tmp_path / "bundle", tmp_path / "log") as running:
        assert running.is_ready()
        process = running.process
        working = Path(f"/proc/{process.pid}/cwd").resolve()
        assert working == Path(moh_deploy.__file__).resolve().parents[1]
    assert process.poll() is not None
    assert not running.is_ready()
    assert python_of_stub(server.stub) == PYTHON


def test_server_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(server_module, "_STOP_SECONDS", 0.2)
    deaf = READY.replace(
        "import http", "import signal; signal.signal(15, lambda *_: None)\nimport http"
    )
    server = TritonServer(install(tmp_path / "s", deaf.format(python=sys.executable)))
    with running_server(server, tmp_path / "bundle", tmp_path / "log") as running:
        process = running.process
    assert process.returncode == -9


@pytest.mark.parametrize(
    ("script", "has_stub", "message"),
    [
        ("echo no such model; exit 1", True, r"tritonserver ended\..*\n.*no such model"),
        ("exec sleep 60", True, "tritonserver is not ready"),
        ("exit 1", False, f"no stub of its Python backend for Python {PYTHON}"),
    ],
    ids=["ends", "never ready", "no stub"],
)
def test_server_that_does_not_start_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, has_stub: bool, message: str
):
    monkeypatch.setattr(server_module, "_START_SECONDS", 0.2 if "sleep" in script else 60)
    root = install(tmp_path / "s", f"#!/bin/sh\n{script}\n")
    if not has_stub:
        (root / "python_backend_stubs" / PYTHON / "triton_python_backend_stub").unlink()
    with (
        pytest.raises(BackendError, match=message),
        running_server(TritonServer(root), tmp_path / "bundle", tmp_path / "log"),
    ):
        pass


def test_server_in_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    root = install(tmp_path / "s")
    monkeypatch.setattr(server_module.shutil, "copy2", refuse)
    with (
        pytest.raises(BackendError, match=r"cannot be copied to .*: Permission denied"),
        running_server(TritonServer(root), tmp_path / "bundle", tmp_path / "log"),
    ):
        pass
