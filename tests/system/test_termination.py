import signal
import subprocess
import sys
import threading

import pytest

from moh_deploy.system.termination import cleaned_up_on_termination, signals_held


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
    before = [signal.getsignal(item) for item in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with cleaned_up_on_termination(lambda: None), signals_held():
        assert signal.getsignal(signal.SIGINT) != before[0]
    after = [signal.getsignal(item) for item in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert after == before


_NESTED = """
import signal, sys
from moh_deploy.system.termination import cleaned_up_on_termination
with cleaned_up_on_termination(lambda: print("outer", flush=True)):
    with cleaned_up_on_termination(lambda: print("inner", flush=True)):
        if sys.argv[1] == "inner":
            signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
print("too much")
"""


@pytest.mark.parametrize(("where", "called"), [("inner", "inner\nouter\n"), ("outer", "outer\n")])
def test_blocks_within_each_other_are_all_cleaned_up(where: str, called: str):
    done = subprocess.run(
        [sys.executable, "-c", _NESTED, where], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == (called, -signal.SIGTERM)


def test_handler_of_the_caller_is_left_alone():
    found: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: found.append(number))
    try:
        with cleaned_up_on_termination(lambda: found.append(0)):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert found == [signal.SIGTERM]


def test_other_threads_may_use_both():
    entered: list[bool] = []

    def work() -> None:
        with cleaned_up_on_termination(lambda: None), signals_held():
            entered.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert entered == [True]
