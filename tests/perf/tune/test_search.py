"""A candidate that ends its process is one row of the table, and the search goes on."""

import math
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from moh_deploy.errors import BackendError, ValidationError
from moh_deploy.package import OnnxPackage
from moh_deploy.perf.timing import Ratio
from moh_deploy.perf.tune.contests import Best, Contests, folder_of
from moh_deploy.perf.tune.report import RuntimePrecision, Timed, Tried
from moh_deploy.perf.tune.search import ContestsApart, Search
from tests.handmade_package import write_package
from tests.nightly import nightly
from tests.perf.tune.search_tasks import GOOD, Ending
from tests.validate.compare.test_parity_report import METRIC

FLOAT32 = RuntimePrecision("onnxruntime", "float32")
# Infinity and NaN have to survive.
ACCURATE = replace(GOOD, accuracy=(replace(METRIC, interval=(-math.inf, 0.1)),))


def searched(root: Path, *precisions: str, first: str = "well") -> list[Tried]:
    """Return how candidates ended that end as they are called."""
    package = write_package(root / "package")
    ways = [FLOAT32, *(RuntimePrecision("onnxruntime", precision) for precision in precisions)]
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


class Planned:
    """Takes candidates: `fast` wins, `broken` is interrupted, and others are slow."""

    def __init__(self, root: Path) -> None:
        self.root, self.seen = root, list[str]()

    def make(self, to: str, folder: Path) -> OnnxPackage:
        self.seen.append(f"made {to}")
        return write_package(folder)

    def first(self, way: RuntimePrecision) -> Best:
        self.seen.append(way.precision)
        folder_of(self.root, way).mkdir()
        return Best(way, write_package(folder_of(self.root, way) / "tuned"), GOOD, ({"batch": 2},))

    def challenge(self, way: RuntimePrecision, made: OnnxPackage, best: Best) -> Best | Tried:
        self.seen.append(way.precision)
        timed = Timed(best.way.name, 1.0, 2.0, Ratio(0.5, 0.4, 0.6))
        folder_of(self.root, way).mkdir()
        if way.precision == "broken":
            raise KeyboardInterrupt
        if way.precision == "fast":
            package = write_package(folder_of(self.root, way) / "tuned")
            return Best(way, package, GOOD, best.sizes, timed)
        return Tried(way, "too slow", "slow", timed, ACCURATE)


def planned(root: Path, *precisions: str) -> tuple[Search, Planned]:
    contests = Planned(root)
    ways = [FLOAT32, *(RuntimePrecision("onnxruntime", name) for name in precisions)]
    base = write_package(root / "float32")
    return Search(base, ways, cast(Contests, contests), root), contests


def interrupted(root: Path) -> Search:
    """Return a search that knows two candidates, and was interrupted at the third."""
    search, _ = planned(root, "slow", "fast", "broken", "other")
    with pytest.raises(KeyboardInterrupt):
        search.run(lambda way: search.keep())
    return search


def test_search_goes_on_with_what_it_has_kept(tmp_path: Path):
    before = interrupted(tmp_path)
    search, contests = planned(tmp_path, "slow", "fast", "later", "other")
    search.resume()
    assert search.best is not None
    assert before.best is not None
    assert replace(search.best, package=before.best.package) == before.best
    assert search.best.package.root == tmp_path / "onnxruntime-fast" / "tuned"
    assert search.tried == before.tried
    asked: list[RuntimePrecision | None] = []
    assert search.run(asked.append).way.precision == "fast"
    assert contests.seen == ["made later", "later", "made other", "other"]
    assert [way and way.precision for way in asked] == ["later", "other", None]
    assert [(row.way.precision, row.ending) for row in search.tried] == [
        ("float32", "too slow"),
        ("slow", "too slow"),
        ("fast", "chosen"),
        ("later", "too slow"),
        ("other", "too slow"),
    ]
    # Of what was tuned the best alone is left, and nothing of what was interrupted.
    folders = {path.name for path in tmp_path.glob("onnxruntime-*")}
    assert folders == {"onnxruntime-fast", "onnxruntime-broken"}


def test_package_in_a_precision_that_is_there_is_not_made_again(tmp_path: Path):
    interrupted(tmp_path)
    search, contests = planned(tmp_path, "slow", "fast", "broken", "other")
    search.resume()
    with pytest.raises(KeyboardInterrupt):
        search.run()
    assert contests.seen == ["broken"]


@pytest.mark.parametrize("damage", ["file", "package", "made"])
def test_what_has_changed_since_is_not_taken_over(damage: str, tmp_path: Path):
    interrupted(tmp_path)
    if damage == "file":
        (tmp_path / "search.json").write_text('{"way": 1}')
    else:
        name = "onnxruntime-fast/tuned" if damage == "package" else "broken"
        with (tmp_path / name / "model.onnx").open("ab") as file:
            file.write(b"more")
    search, contests = planned(tmp_path, "slow", "fast", "broken")
    search.resume()
    with pytest.raises(KeyboardInterrupt):
        search.run()
    starts_over = ["float32", "slow", "fast", "broken"]
    assert contests.seen == (["made broken", "broken"] if damage == "made" else starts_over)


@nightly
def test_what_else_ends_a_process_is_said(tmp_path: Path):
    rows = searched(tmp_path, "unmade", "signal 9", "memory", "status 3", "refused")[1:]
    said = {row.way.precision: str(row.reason).partition(", at")[0] for row in rows}
    killed = "its process ended by signal 9 (SIGKILL)"
    assert said == {
        "unmade": f"it cannot be made: {killed}. A system that is short of memory does that.",
        "signal 9": killed,
        "memory": "its process had no more memory",
        "status 3": "its process ended with status 3",
        "refused": "it is not equal.",
    }
    endings = {row.way.precision: row.ending for row in rows}
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
