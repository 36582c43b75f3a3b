"""Keep signals from leaving half-done work behind."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

_Handler = Callable[[int, FrameType | None], None]

# SIGHUP does not exist everywhere.
_TERMINATIONS = [number for number in signal.Signals if number.name in ("SIGTERM", "SIGHUP")]


@contextmanager
def cleaned_up_on_termination(clean_up: Callable[[], None]) -> Iterator[None]:
    """Call `clean_up` when SIGTERM or SIGHUP ends the process within the block.

    Within another such block both are called, the inner one first. Handlers that the caller has
    installed are left alone: it may be a server that shuts down in order. An exception raised by
    the handler would be the simpler way, but Python swallows it where the signal happens to arrive
    in a finaliser or a weakref callback, and the process would live on.
    """
    found = {number: signal.getsignal(number) for number in _TERMINATIONS}
    with _handled_by(
        {
            number: _CleanUp(clean_up, before if isinstance(before, _CleanUp) else None)
            for number, before in found.items()
            if before == signal.SIG_DFL or isinstance(before, _CleanUp)
        }
    ):
        yield


@dataclass(frozen=True)
class _CleanUp:
    """A handler that cleans up, as does that of the block around it, and dies."""

    clean_up: Callable[[], None]
    around: _CleanUp | None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        try:
            self.clean_up()
        finally:
            if self.around is not None:
                self.around(number, frame)
            else:
                # Die by the same signal, so that the waiting process sees how the process ended.
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)


@contextmanager
def signals_held() -> Iterator[None]:
    """Let a few operations run to their end; a signal that arrives meanwhile counts after them."""
    held: list[int] = []

    def hold(number: int, _frame: FrameType | None) -> None:
        held.append(number)

    try:
        with _handled_by(dict.fromkeys([signal.SIGINT, *_TERMINATIONS], hold)):
            yield
    finally:
        # After the handlers of before are back: it is they who answer.
        for number in held:
            signal.raise_signal(number)


@contextmanager
def _handled_by(handlers: Mapping[signal.Signals, _Handler]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets only the main thread set handlers, and runs them there.
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, previous in before.items():
            # None stands for a handler that C code installed, which Python cannot put back.
            if previous is not None:
                signal.signal(number, previous)
