"""A candidate that ends its process is one row of the table, and the search goes on."""

from pathlib import Path

import pytest

from moh_deploy.errors import BackendError, ValidationError
from moh_deploy.perf.tune.report import RuntimePrecision, Tried
from moh_deploy.perf.tune.search import ContestsApart, Search
from tests.handmade_package import write_package
from tests.nightly import nightly
from tests.perf.tune.search_tasks import Ending

FLOAT32 = RuntimePrecision("onnxruntime", "float32")


def searched(root: Path, *precisions: str, first: str = "well") -> list[Tried]:
    """Return how candidates ended that end as they are called."""
    package = write_package(root / "package")
    ways = [FLOAT32, *(RuntimePrecision("onnxruntime", one) for one in precisions)]
    contests = ContestsApart(Ending(package.root, first), root)
    search = Search(package, ways, contests, root)
    assert search.run().way == FLOAT32
    return search.tried


def test_candidate_that_is_ended_by_a_signal_is_a_row_and_the_next_one_is_taken(tmp_path: Path):
    chosen, crashed, slow = searched(tmp_path, "signal 11", "slow")
    assert (chosen.ending, crashed.ending) == ("chosen", "could not run")
    at = "at 'timing signal 11 in ONNX Runtime'"
    assert crashed.reason == f"its process ended by signal 11 (SIGSEGV), {at}."
    assert slow.reason == "slower than float32 in ONNX Runtime"


@nightly
def test_what_else_ends_a_process_is_said(tmp_path: Path):
    rows = searched(tmp_path, "unmade", "signal 9", "memory", "status 3", "refused")[1:]
    said = {one.way.precision: str(one.reason).partition(", at")[0] for one in rows}
    killed = "its process ended by signal 9 (SIGKILL)"
    assert said == {
        "unmade": f"it cannot be made: {killed}. A system that is short of memory does that.",
        "signal 9": killed,
        "memory": "its process had no more memory",
        "status 3": "its process ended with status 3",
        "refused": "it is not equal.",
    }
    endings = {one.way.precision: one.ending for one in rows}
    assert endings.pop("refused") == "not good"
    assert set(endings.values()) == {"could not run"}


@nightly
def test_fault_of_ours_is_no_row(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    with pytest.raises(RuntimeError, match="ZeroDivisionError: a fault of ours"):
        searched(tmp_path, "fault")
    assert "Traceback" in capfd.readouterr().err


@nightly
def test_float32_package_that_ends_its_process_is_an_error_with_the_reason(tmp_path: Path):
    with pytest.raises(BackendError, match=r"float32 package cannot be run: .*signal 11"):
        searched(tmp_path, first="signal 11")
    with pytest.raises(ValidationError, match="not equal"):
        searched(tmp_path, first="refused")
