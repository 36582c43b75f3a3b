"""Run the blocks of a page in their order, as its reader does, and compare what they print."""

import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from types import TracebackType

from filelock import FileLock

from tests.kept_builds import BUILDS
from tests.pages.blocks import Block, Command, blocks

SECONDS = 1800  # for a command: nights are busy
# Begins commands that go on until they are ended: the page's next ones talk to them.
SERVERS = ("moh-deploy serve ", "python -m http.server ", ".venv/bin/python -m http.server ")
PYTHON = """
import contextlib, io, json, os, sys, traceback
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what libraries print themselves
names = {"__name__": "__main__"}
for line in sys.stdin:
    printed, code = io.StringIO(), 0
    with contextlib.redirect_stdout(printed):
        try:
            exec(compile(json.loads(line), "page", "exec"), names)
        except BaseException:
            traceback.print_exc(file=printed)
            code = 1
    print(json.dumps([code, printed.getvalue()]), file=answers, flush=True)
"""


class WrongPage(AssertionError):
    """A page says what does not happen."""


class Session:
    """A reader's directory, shell and Python.

    Args:
        folder: Where commands run: a checkout, and what the page takes for granted.
        programs: The folder of `moh-deploy` and `python`, before all others on PATH.
        may: Reasons not to run a command that do not count here.
    """

    def __init__(self, folder: Path, programs: Path, *, may: Collection[str] = ()) -> None:
        self.folder = folder
        self.may = may
        self.steps: list[str] = []
        self._servers: list[subprocess.Popen[bytes]] = []
        self._python: subprocess.Popen[str] | None = None
        # Servers of pages listen where all servers do that nobody gives another port.
        self._port = FileLock(BUILDS / "port-8000.lock")
        path = os.pathsep.join((str(programs), os.environ["PATH"]))
        # Tables are cut at the width of a terminal, and the pages' are of a wide one.
        self._environment = os.environ | {"PATH": path, "HOME": str(folder), "COLUMNS": "120"}

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end_server()
        if self._python is not None:
            self._python.communicate(timeout=60)

    def run_page(self, page: Path) -> None:
        """Run the blocks of a page to its end.

        Raises:
            WrongPage: Commands fail, or print something else than the page: all of them.
        """
        problems: list[str] = []
        found = blocks(page.read_text(), page.name)
        for block, below in zip(found, [*found[1:], None], strict=True):
            # Text directly below Python is what it prints.
            is_output = below is not None and (below.language, below.follows) == ("text", "python")
            problems += filter(None, self._run(block, below.text if is_output else ""))
        if problems:
            raise WrongPage("\n\n".join(problems))

    def _run(self, block: Block, output: str) -> Iterator[str]:
        if self._is_left_out(block, ""):
            return
        if block.file:
            (self.folder / block.file).write_text(block.text)
        elif block.language == "python":
            code, printed = self.python(block.text)
            yield self._judge(block, Command(block.text, output), code, printed)
        elif block.language == "console":
            for command in block.commands:
                if not self._is_left_out(block, command.line):
                    yield self._judge(block, command, *self.shell(command.line))

    def python(self, source: str) -> tuple[int, str]:
        """Run statements that see the names of earlier ones; return exit code and output."""
        if self._python is None:
            self._python = subprocess.Popen(
                ["python", "-c", PYTHON],
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self._python.stdin is not None
        assert self._python.stdout is not None
        print(json.dumps(source), file=self._python.stdin, flush=True)
        code, printed = json.loads(self._python.stdout.readline())
        return code, printed

    def _is_left_out(self, block: Block, command: str) -> bool:
        reason = block.marked("skip", command)
        return bool(reason) and reason not in self.may

    def shell(self, line: str) -> tuple[int, str]:
        """Run a command; return exit code and output."""
        if line.startswith(SERVERS):
            return self._start_server(line)
        ran = subprocess.run(
            ["bash", "-c", line],
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        return ran.returncode, ran.stdout + ran.stderr

    def _start_server(self, line: str) -> tuple[int, str]:
        self._end_server()
        self._port.acquire()
        log = self.folder / "server.log"
        with log.open("wb") as file:
            server = subprocess.Popen(
                shlex.split(line, comments=True),
                cwd=self.folder,
                env=self._environment | {"PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        self._servers.append(server)
        until = time.monotonic() + SECONDS
        while server.poll() is None and time.monotonic() < until:
            if "Serving" in log.read_text():
                return 0, log.read_text()
            time.sleep(0.2)
        return server.returncode or 1, log.read_text()

    def _end_server(self) -> None:
        for server in self._servers:
            server.send_signal(signal.SIGINT)
            server.wait(timeout=60)
        self._servers.clear()
        self._port.release()

    def _judge(self, block: Block, command: Command, code: int, printed: str) -> str:
        """Return what is wrong with a step; empty if nothing is."""
        self.steps.append(command.line)
        is_open = bool(block.marked("ignore output", command.line))
        if code != 0 and not (is_open and code == 1):
            return f"{block.place}: exit code {code}\n{command.line}\n{printed[-4000:]}"
        if not is_open and not re.search(pattern(command.printed), plain(printed), re.DOTALL):
            return (
                f"{block.place}: other output\n{command.line}\n{printed}\n"
                f"expected:\n{command.printed}"
            )
        return ""


def plain(text: str) -> str:
    """Return text without lines of tables, and what width and colour of a terminal change."""
    return " ".join(re.sub(r"[\u2500-\u257f]|\x1b\[[\d;]*m", " ", text).split())


def pattern(shown: str) -> str:
    """Return a regular expression of what a page shows: of other fractions, and of more at `...`.

    Whole numbers are compared. Fractions are those of a machine or a training.
    """
    escaped = re.escape(plain(shown))
    escaped = re.sub(r"\d+\\\.\d+(e\\[-+]\d+)?", r"[\\d.]+(e[-+]?\\d+)?", escaped)
    return escaped.replace(r"\.\.\.", ".*?").replace(r"\ ", r"\s*")
