import json
from pathlib import Path

import pytest

from moh_deploy.system.bounded_file import sha256_of_json
from moh_deploy.system.npz import write_npz
from tests.cli.run_cli import Cli
from tests.handmade_package import vectors, write_package
from tests.nightly import nightly
from tests.report.junit_reader import read_outcomes

pytestmark = pytest.mark.usefixtures("warm_processes")

BENCH = ("--threads", "1", "--min-time", "0s", "--warmup", "0ms")


@pytest.fixture
def file(cli: Cli, package: Path, tmp_path: Path) -> Path:
    path = tmp_path / "baseline.json"
    written = cli("verify", package, "--baseline-file", path, "--update-baseline")
    assert (written.exit_code, written.err) == (0, "")
    assert "new; written" in written.out
    return path


def edit(file: Path, section: str, group: str, name: str, value: float) -> None:
    """Let a file say that something else was reached, its digest computed anew."""
    content = json.loads(file.read_text())
    content.pop("sha256", None)
    content[section]["figures"][group][name] = value
    file.write_text(json.dumps({**content, "sha256": sha256_of_json(content)}))


@nightly
def test_verify_fails_where_it_is_worse(cli: Cli, package: Path, file: Path, tmp_path: Path):
    assert cli("verify", package, "--baseline-file", file).exit_code == 0
    edit(file, "verify", "all", "vector_sets", 100)
    junit, markdown = tmp_path / "junit.xml", tmp_path / "verify.md"
    reports = ("--junit", junit, "--markdown", markdown)
    failed = cli("verify", package, "--baseline-file", file, *reports, "--json")
    assert failed.exit_code == 1
    sentence = "all: vector sets: 1, was 100, allowed at least 100."
    assert f"error: worse than {file}: {sentence}" in failed.err
    assert failed.json["equal"] is True
    assert failed.json["ratchet"]["reasons"] == [sentence]
    assert failed.json["error"]["exit_code"] == 1
    assert 'failures="2" errors="0"' in junit.read_text()
    assert "WORSE THAN BEFORE" in markdown.read_text()
    shown = cli("verify", package, "--baseline-file", file)
    assert sentence in shown.out


def test_unequal_run_writes_no_baseline(cli: Cli, package: Path, tmp_path: Path):
    inputs, path = tmp_path / "wrong.npz", tmp_path / "baseline.json"
    known = vectors()
    wrong = {name: value + 1 for name, value in known.outputs.items()}
    write_npz(inputs, {**known.inputs, **wrong})
    arguments = ("--inputs", inputs, "--baseline-file", path, "--update-baseline")
    assert cli("verify", package, *arguments).exit_code == 1
    assert not path.exists()


def test_bench_keeps_the_ratio(cli: Cli, package: Path, file: Path):
    arguments = ("--baseline", "functions", *BENCH, "--baseline-file", file)
    assert "holds nothing of bench" in cli("bench", package, *arguments).err
    assert cli("bench", package, *arguments, "--update-baseline").exit_code == 0
    group = "recorded inputs at batch=2, seq=3, threads=1, beside functions"
    assert json.loads(file.read_text())["bench"]["figures"][group]["ratio"]
    edit(file, "bench", group, "ratio", 1e-9)
    junit = file.with_name("bench.xml")
    failed = cli("bench", package, *arguments, "--json", "--junit", junit)
    assert failed.exit_code == 1
    assert failed.json["passed"] is False
    assert read_outcomes(junit.read_text())[f"{group}: ratio"] == "failure"
    assert f"error: worse than {file}: " in failed.err
    reasons = failed.json["ratchet"]["reasons"]  # others on the machine may make p50 worse, too
    assert any(
        reason.startswith(f"{group}: time as a share of the baseline's") for reason in reasons
    )


@nightly
def test_bench_of_a_wrong_package_is_not_compared(cli: Cli, tmp_path: Path):
    wrong, path = write_package(tmp_path / "wrong", scale=2.0).root, tmp_path / "bench.json"
    arguments = ("--baseline", "functions", *BENCH, "--baseline-file", path, "--update-baseline")
    failed = cli("bench", wrong, *arguments)
    assert failed.exit_code == 1
    assert f"error: {wrong} is not what the baseline file is of: against vectors" in failed.err
    assert not path.exists()


def test_bench_keeps_one_package_beside_a_baseline(cli: Cli, package: Path, file: Path):
    alone = cli("bench", package, *BENCH, "--baseline-file", file, "--update-baseline")
    assert alone.exit_code == 2
    assert "there is no baseline" in alone.err


@pytest.mark.parametrize("command", ["verify", "bench"])
def test_update_without_a_file_ends_with_2(cli: Cli, package: Path, command: str):
    assert cli(command, package, "--update-baseline").exit_code == 2


def test_missing_file_ends_with_2_before_anything_runs(cli: Cli, package: Path, tmp_path: Path):
    failed = cli("verify", package, "--baseline-file", tmp_path / "none.json")
    assert failed.exit_code == 2
    assert "hint: --update-baseline writes it" in failed.err


@nightly
def test_paths_may_be_written_in_any_way(cli: Cli, package: Path, tmp_path: Path, monkeypatch):
    other = write_package(tmp_path / "other").root
    write_npz(tmp_path / "in.npz", vectors().inputs)
    write_npz(tmp_path / "expected.npz", {**vectors().inputs, **vectors().outputs})
    file = tmp_path / "baseline.json"
    shared = ("--baseline-file", file, "--inputs")
    calls = (
        ("verify", package, *shared, tmp_path / "in.npz", "--against", other),
        ("verify", package, *shared, tmp_path / "in.npz", "--against", other / "model.onnx"),
        ("verify", package, *shared, tmp_path / "expected.npz"),
        ("bench", package, *BENCH, *shared, tmp_path / "in.npz", "--baseline", other),
    )
    monkeypatch.chdir(tmp_path)
    for call in calls:
        file.unlink(missing_ok=True)
        relative = [str(item).removeprefix(f"{tmp_path}/") for item in call]
        assert cli(*call, "--update-baseline").exit_code == 0
        found = cli(*relative, "--json").json["ratchet"]["entries"]
        assert {item["outcome"] for item in found} <= {"held", "better", "worse"}
        assert str(tmp_path) not in file.read_text()
