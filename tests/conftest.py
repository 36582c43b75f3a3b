"""How much a run tests (--nightly), and what makes many small models quick and interrupts heard."""

import gc
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from copy import copy
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.nightly import split_by_run
from tests.push_budget import Spent, budgets, compared, excesses, spent_by_folder
from tests.skips import MACHINE, expected_skips, reason_of, unexpected_skips
from tests.warm_python import is_possible, warm_python

pytest_plugins = ["pytester"]

# Before a worker keeps to one of them.
ALL_CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set[int]()

# A drawn example may be slow: on a busy machine, and the first one, which loads what it needs.
_PATIENT = settings(
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
# A push draws the same few examples each time: who changed nothing sees no new failure. What
# random seeds find at night is printed as a decorator that repeats it.
settings.register_profile("push", _PATIENT, derandomize=True, max_examples=25)
settings.register_profile("nightly", _PATIENT, max_examples=500, print_blob=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--nightly",
        action="store_true",
        help="run the tests marked `nightly` too, and draw many examples from random seeds",
    )
    parser.addoption(
        "--expected-skips",
        action="store_true",
        help="fail if tests are skipped for reasons that tests/expected_skips.yaml does not list",
    )
    parser.addoption(
        "--push-budget",
        action="store_true",
        help="say what the tests of each folder took, and fail if it has more of them in a push "
        "than tests/push_budget.yaml allows",
    )


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("nightly" if config.getoption("--nightly") else "push")
    _take_one_core()


def _take_one_core() -> None:
    """Let a worker of pytest-xdist, where there is one a core, keep to a core of its own.

    ONNX Runtime has a thread for each core that it sees, and those that wait for work spin: two
    workers on two cores took a seventh more CPU time for tests of the ops, and two thirds more for
    those of the kernels.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if not worker.startswith("gw") or not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    if int(os.environ["PYTEST_XDIST_WORKER_COUNT"]) == len(cores):
        os.sched_setaffinity(0, {cores[int(worker[2:])]})


@pytest.fixture
def all_cores() -> Iterator[None]:
    """Threads that a test starts run at the same time: on one core they would take turns, and what
    they spoil for each other would not be seen."""
    if not ALL_CORES:
        yield
        return
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, ALL_CORES)
    assert os.sched_getaffinity(0) == ALL_CORES
    yield
    os.sched_setaffinity(0, own)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--nightly"):
        return
    items[:], left_out = split_by_run(items)
    config.hook.pytest_deselected(items=left_out)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Let unexpected skips, and more tests than a push may have, fail a run that is fine else."""
    config = session.config
    if (config.getoption("--expected-skips") and _unexpected(config)) or (
        config.getoption("--push-budget") and excesses(_spent(config), budgets())
    ):
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say what the tests of each folder took, and what was skipped unexpectedly, last of all."""
    if config.getoption("--push-budget"):
        spent, allowed = _spent(config), budgets()
        for line in [*compared(spent, allowed), *excesses(spent, allowed)]:
            terminalreporter.write_line(line)
    for problem in _unexpected(config):
        terminalreporter.write_line(f"unexpected skips: {problem}")


def _unexpected(config: pytest.Config) -> list[str]:
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is None:  # a worker of pytest-xdist: the process that collects reports judges
        return []
    counts = Counter(reason_of(report) for report in terminal.stats.get("skipped", []))
    return unexpected_skips(counts, expected_skips(), lambda name: MACHINE[name]())


def _spent(config: pytest.Config) -> dict[str, Spent]:
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is None:
        return {}
    reports = [report for kind in terminal.stats.values() for report in kind]
    return spent_by_folder(item for item in reports if isinstance(item, pytest.TestReport))


@pytest.fixture(scope="session")
def warm_interpreter() -> Iterator[Path]:
    """What is called as Python is, and has imported what commands need: see `tests.warm_python`."""
    if not is_possible():
        yield Path(sys.executable)
        return
    with warm_python() as interpreter:
        yield interpreter


@pytest.fixture
def warm_processes(warm_interpreter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of Python that a test starts, and those that moh_deploy starts, are quick."""
    monkeypatch.setattr(sys, "executable", str(warm_interpreter))


@pytest.fixture(scope="session", autouse=True)
def _garbage_is_collected_rarely() -> Iterator[None]:
    """Tracing sets off thousands of collections, and each would walk all of torch for nothing."""
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _torch_expects_small_models() -> Iterator[None]:
    """Models this small lose more time to handing work over to threads than they gain."""
    if "torch" not in sys.modules:  # no test of this run needs it
        yield
        return
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def _exporter_reads_its_library_once() -> Iterator[None]:
    """PyTorch's exporter reads the signatures of all functions that it knows for each model anew,
    which takes a fifth of an export where models are this small: exports get copies of one list."""
    if "torch" not in sys.modules:
        yield
        return
    from torch.onnx._internal.exporter import _registration as registration

    read = registration.ONNXRegistry.from_torchlib
    kept: dict[object, registration.ONNXRegistry] = {}

    def copied(**versions: object) -> registration.ONNXRegistry:
        key = tuple(versions.items())
        if key not in kept:
            kept[key] = read(**versions)
        made = copy(kept[key])
        made.functions = {name: list(ways) for name, ways in made.functions.items()}
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registration.ONNXRegistry, "from_torchlib", staticmethod(copied))
        yield


@pytest.fixture(scope="session", autouse=True)
def _interrupts_are_heard() -> Iterator[None]:
    """A background job of a shell ignores SIGINT, under nohup SIGHUP; children inherit that."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    ignored = [item for item in usual if signal.getsignal(item) is signal.SIG_IGN]
    for item in ignored:
        signal.signal(item, usual[item])
    yield
    for item in ignored:
        signal.signal(item, signal.SIG_IGN)
