"""The plugin that keeps results of a long run, in runs of its own over small files of tests."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def night(monkeypatch: pytest.MonkeyPatch, pytester: pytest.Pytester) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    module = importlib.import_module("night")
    # The whole project takes seconds to read.
    for name, empty in (("sources", {}), ("imports_by_module", {}), ("_common", b"")):
        monkeypatch.setattr(module, name, lambda empty=empty: empty)
    monkeypatch.setattr(module, "_commit", lambda: "0123abcd")
    for changed in (module, importlib.import_module("touched_tests")):
        monkeypatch.setattr(changed, "ROOT", pytester.path)
    for name, path in (("RESULTS", "kept"), ("RECORD", "recorded"), ("PAGE", "page")):
        monkeypatch.setattr(module, name, pytester.path / f"{path}.jsonl")
    module.PAGE.write_text(f"before\n{module.BEGIN}old\n{module.END}after\n")
    module._by_module.cache_clear()
    module.key_of.cache_clear()
    return module


@pytest.fixture
def run(night: ModuleType, pytester: pytest.Pytester):
    # What night.py collects tests with.
    option = 'parser.addoption("--nightly", action="store_true")'
    pytester.makeconftest(f"def pytest_addoption(parser): {option}")
    pytester.makepyfile(
        test_a="""
            import pytest
            def test_right(): pass
            def test_wrong(): assert 1 == 2
            def test_later(): pytest.skip("no card")
        """,
        test_b="def test_other(): pass",
    )

    def run(*options: str) -> dict[str, int]:
        ended = pytester.runpytest_inprocess("--results=kept.jsonl", *options, plugins=[night])
        counts: dict[str, int] = ended.parseoutcomes()
        return counts

    return run


def test_failures_alone_run_again(night: ModuleType, run):
    assert run() == {"passed": 2, "failed": 1, "skipped": 1}
    assert run() == {"failed": 1, "deselected": 3}
    kept = {result.test: result for result in night.read(Path("kept.jsonl"))}
    assert kept["test_a.py::test_wrong"].why == "assert 1 == 2"
    assert kept["test_a.py::test_later"].why == "Skipped: no card"


def test_changed_contents_run_again(night: ModuleType, run, monkeypatch: pytest.MonkeyPatch):
    run()
    monkeypatch.setattr(night, "_common", lambda: b"another library")
    night.key_of.cache_clear()
    assert run() == {"passed": 2, "failed": 1, "skipped": 1}


def test_another_processor_runs_all_again(night: ModuleType, run, monkeypatch: pytest.MonkeyPatch):
    run()
    monkeypatch.setattr(night, "_processor", lambda: "another")
    assert run() == {"passed": 2, "failed": 1, "skipped": 1}


def test_shards_are_all_together(run):
    assert sum(run("--shard", shard).get("passed", 0) for shard in ("1/3", "2/3", "3/3")) == 2
    assert run() == {"failed": 1, "deselected": 3}


def test_run_whose_time_is_up_is_gone_on_with(run):
    assert run("--minutes", "0") == {"passed": 1}
    assert run() == {"passed": 1, "failed": 1, "skipped": 1, "deselected": 1}


def test_key_is_of_what_a_file_reaches(night: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(night, "imports_by_module", lambda: {"tests.test_x": {"tests.reached"}})

    def key_with(reached: str, other: str) -> str:
        texts = {"tests.test_x": "", "tests.reached": reached, "tests.other": other}
        by_module = {
            name: night._Module(text.encode(), set(), set()) for name, text in texts.items()
        }
        monkeypatch.setattr(night, "_by_module", lambda: by_module)
        night.key_of.cache_clear()
        key: str = night.key_of("tests/test_x.py")
        return key

    assert key_with("1", "1") == key_with("1", "2") != key_with("2", "1")


def test_bounds_of_dependencies_are_no_source(night: ModuleType, pytester: pytest.Pytester):
    def settings(bound: str, line: int) -> bytes:
        project = f'[project]\ndependencies = ["torch>={bound}"]\n[tool.ruff]\nline-length = {line}'
        (pytester.path / "pyproject.toml").write_text(project)
        found: bytes = night._settings()
        return found

    assert settings("2.9", 100) == settings("2.10", 100) != settings("2.10", 90)


def test_line_that_was_cut_off_is_no_result(night: ModuleType, run):
    run()
    path = Path("kept.jsonl")
    path.write_text(path.read_text()[:-9])
    assert len(night.read(path)) == 3


def test_report_counts_the_last_result_of_each_test(night: ModuleType, run):
    run()
    run()
    lines = list(night.report(night.by_file(night.read(Path("kept.jsonl")))))
    assert "| all | 2 | 2 | 1 | 1 | 0.0 |" in lines
    assert "- failed: `test_a.py::test_wrong`: assert 1 == 2" in lines
    assert "- 1 skipped: `Skipped: no card`" in lines


def test_another_checkout_goes_on_from_the_record(night: ModuleType, run):
    run()
    night.record()
    night.RESULTS.unlink()
    assert run() == {"failed": 1, "deselected": 3}


def test_a_file_is_recorded_when_all_its_tests_ran(night: ModuleType, run):
    run("--minutes", "0")
    night.record()
    assert night.read_record() == []
    assert "No run is recorded yet." in night.PAGE.read_text()
    run()
    night.record()
    assert [(row.file, row.passed) for row in night.read_record()] == [
        ("test_a.py", 1),
        ("test_b.py", 1),
    ]


def test_page_and_record_agree(night: ModuleType, run, capsys: pytest.CaptureFixture[str]):
    run()
    night.record()
    page = night.PAGE.read_text()
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    assert "| all | 2 | 2 | 1 | 1 | 0.0 |" in page
    assert night.check() is None
    assert "2 of 2 files" in capsys.readouterr().out
    night.PAGE.write_text(page.replace("| all | 2 |", "| all | 3 |"))
    assert "differs" in night.check()


def test_results_of_other_contents_are_counted(
    night: ModuleType,
    run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    run()
    night.record()
    monkeypatch.setattr(night, "_common", lambda: b"another library")
    night.key_of.cache_clear()
    assert night.check() is None
    assert "0 of 2 files" in capsys.readouterr().out
