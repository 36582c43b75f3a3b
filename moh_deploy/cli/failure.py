"""End a command that cannot do its job: one line on stderr, an exit code, no traceback.

Only a bug of moh-deploy's own has one, and an exit code that means nothing else.
"""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TextIO

import click

from moh_deploy.errors import BackendError, MoHDeployError, PackageError
from moh_deploy.system.bounded_json import to_json_text

EXIT_USAGE = 2
EXIT_BUG = 70  # EX_SOFTWARE of sysexits.h; Python's own 1 would say that the answer is no
EXIT_INTERRUPTED = 130  # as a shell reports SIGINT
EXIT_BROKEN_PIPE = 141  # as a shell reports SIGPIPE


def exit_code_of(run: Callable[[], object], *, as_json: bool) -> int:
    """Call `run` and return the exit code; what it returns is one if it is an int.

    Args:
        run: The whole command line.
        as_json: Print failures on stdout as a JSON object too.
    """
    with _interrupts_noted() as interrupts:
        try:
            code = run()
        except (click.Abort, KeyboardInterrupt):
            return _interrupted()
        except Exception as error:
            if interrupts:  # A module that was just being loaded makes an ImportError of it.
                return _interrupted()
            try:
                return _exit_code(error, as_json=as_json)
            except BrokenPipeError:  # its reader has gone
                silence(sys.stdout)
                silence(sys.stderr)
                return EXIT_BROKEN_PIPE
    return code if isinstance(code, int) else 0


@contextmanager
def _interrupts_noted() -> Iterator[list[int]]:
    """Yield what every SIGINT is added to that becomes a KeyboardInterrupt in the block."""
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        signal.default_int_handler(number, frame)

    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not is_default or threading.current_thread() is not threading.main_thread():
        yield noted
        return
    try:
        signal.signal(signal.SIGINT, note)
        yield noted
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupted() -> int:
    click.echo("interrupted", err=True)
    return EXIT_INTERRUPTED


def _exit_code(error: Exception, *, as_json: bool) -> int:
    """Report an error on stderr, and as JSON on stdout if asked for.

    One that is not raised on purpose is a bug, and keeps its traceback.
    """
    if isinstance(error, ModuleNotFoundError) and error.name == "torch":
        error = BackendError(
            "PyTorch is not installed, and this command loads a model in it.",
            hint="pip install torch, or export where the model's code is, and go on here.",
        )
    if isinstance(error, MoHDeployError):
        message, hint, code = error.message, error.hint, error.exit_code
        content = error_json(error)
    elif isinstance(error, click.ClickException):
        context = error.ctx if isinstance(error, click.UsageError) else None
        hint = f"See `{context.command_path} --help`." if context is not None else None
        message, code = error.format_message(), EXIT_USAGE
        content = {"type": "UsageError", "message": message, "hint": hint, "exit_code": code}
    else:
        traceback.print_exception(error)
        print_error(
            f"this is a bug of moh-deploy: {type(error).__name__} was not expected.",
            "Report it with the lines above. It says nothing about the model.",
        )
        return EXIT_BUG
    print_error(message, hint)
    if as_json:
        try:
            with writing_stdout():
                click.echo(to_json_text({"error": content}))
        except PackageError as lost:  # The command ends with the first error.
            print_error(lost.message, lost.hint)
    return code


@contextmanager
def writing_stdout(stdout: TextIO | None = None) -> Iterator[None]:
    """Name stdout if it cannot be written.

    Args:
        stdout: What it is, where `sys.stdout` is something else at the moment.

    Raises:
        PackageError: The file that it goes to cannot be written. Nothing more is written to it.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        silence(stdout or sys.stdout)
        raise PackageError(
            f"stdout cannot be written: {os.strerror(error.errno or 0)}. The answer is lost.",
            hint="Free some space, or write to another disk.",
        ) from error


def print_error(message: str, hint: str | None) -> None:
    """Print `error: ...` and, where there is one, `hint: ...` on stderr."""
    click.echo(f"error: {message}", err=True)
    if hint is not None:
        click.echo(f"hint: {hint}", err=True)


def error_json(error: MoHDeployError) -> dict[str, object]:
    """Return an error in plain JSON types."""
    kind = type(error).__name__
    told = {"message": error.message, "hint": error.hint, "exit_code": error.exit_code}
    return {"type": kind, **told}


def silence(stream: TextIO) -> None:
    """Let nothing more be written to a stream, not even when Python flushes it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
