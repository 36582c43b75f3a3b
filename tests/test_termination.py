from __future__ import annotations

import signal
import threading

import pytest

from moh_deploy.termination import cleaned_up_on_termination, signals_held


def interrupt_while_held(done: list[str]) -> None:
    with signals_held():
        signal.raise_signal(signal.SIGINT)
        done.append("all")
    done.append("too much")


def test_signal_counts_after_the_block():
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        interrupt_while_held(done)
    assert done == ["all"]


def test_handlers_are_put_back():
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with cleaned_up_on_termination(lambda: None), signals_held():
        assert signal.getsignal(signal.SIGINT) != before[0]
    after = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert after == before


def test_other_threads_may_use_both():
    entered: list[bool] = []

    def work() -> None:
        with cleaned_up_on_termination(lambda: None), signals_held():
            entered.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert entered == [True]
