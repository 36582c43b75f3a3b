"""Keep signals from leaving half-done work behind."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def cleaned_up_on_termination(clean_up: Callable[[], None]) -> Iterator[None]:
    """Call `clean_up` when SIGTERM or SIGHUP ends the process within the block.

    Handlers that the caller has installed are left alone. An exception raised by the handler
    would be the simpler way, but Python swallows it where the signal happens to arrive in a
    finaliser or a weakref callback, and the process would live on.
    """

    def clean_up_and_die(number: int, _frame: FrameType | None) -> None:
        clean_up()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    unhandled = [number for number in _TERMINATIONS if signal.getsignal(number) == signal.SIG_DFL]
    with _handled_by(clean_up_and_die, unhandled):
        yield


@contextmanager
def signals_held() -> Iterator[None]:
    """Let a few operations run to their end; a signal that arrives meanwhile counts after them."""
    held: list[int] = []
    try:
        with _handled_by(lambda number, _: held.append(number), [signal.SIGINT, *_TERMINATIONS]):
            yield
    finally:
        for number in held:
            signal.raise_signal(number)


# SIGHUP does not exist everywhere.
_TERMINATIONS = [one for one in signal.Signals if one.name in ("SIGTERM", "SIGHUP")]


@contextmanager
def _handled_by(
    handler: Callable[[int, FrameType | None], None], numbers: Iterable[signal.Signals]
) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets only the main thread set handlers, and runs them there.
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            # None stands for a handler that C code installed, which Python cannot put back.
            if previous is not None:
                signal.signal(number, previous)
