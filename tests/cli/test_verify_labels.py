"""`moh-deploy verify --labels` as a user calls it."""

from __future__ import annotations

import xml.etree.ElementTree as xml
from pathlib import Path

import numpy as np
import pytest

from moh_deploy.system.npz import write_npz
from tests.cli.run_cli import Cli
from tests.labelled_package import right_labels, samples, write_classifier
from tests.report.json_schema import validate_answer


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    return write_classifier(tmp_path / "classifier").root


def write_data(folder: Path, count: int) -> tuple[Path, Path]:
    """Write inputs with expected outputs, and labels as csv."""
    data = samples(count, seed=3)
    write_npz(folder / "val.npz", {**data.inputs, **data.outputs})
    np.savetxt(folder / "labels.csv", right_labels(data), "%d", header="label", comments="")
    return folder / "val.npz", folder / "labels.csv"


def test_metric_is_shown_on_both_sides(cli: Cli, classifier: Path, tmp_path: Path):
    inputs, labels = write_data(tmp_path, 400)
    shown = cli("verify", classifier, "--inputs", inputs, "--labels", labels)
    assert (shown.exit_code, shown.err) == (0, "")
    assert "top-1 of output 'logits', higher is better: 400 samples" in shown.out
    assert "Interval: paired bootstrap, 10000 resamples" in shown.out
    assert "EQUAL: max abs error" in shown.out


def test_not_knowing_is_exit_1_in_every_report(cli: Cli, classifier: Path, tmp_path: Path):
    inputs, labels = write_data(tmp_path, 40)
    files = [tmp_path / name for name in ("a.xml", "a.md", "a.html")]
    options = zip(("--junit", "--markdown", "--html"), files, strict=True)
    words = [word for pair in options for word in pair]
    shown = cli("verify", classifier, "--inputs", inputs, "--labels", labels, "--json", *words)
    assert shown.exit_code == 1
    content = shown.json
    validate_answer("verify", content)
    assert not content["equal"]
    assert content["accuracy"][0]["verdict"] == "cannot tell"
    assert content["accuracy"][0]["reason"] == content["reasons"][0]
    assert "error: cannot tell: top-1 went from 100.00 % to 100.00 %" in shown.err
    case = xml.parse(files[0]).find(".//testcase[@classname='moh-deploy.accuracy']/failure")
    assert case is not None
    assert case.get("message", "").startswith("cannot tell: top-1 went")
    assert all("cannot tell" in one.read_text() for one in files[1:])


def test_users_function_is_found_in_its_directory(cli: Cli, classifier: Path, tmp_path: Path):
    inputs, labels = write_data(tmp_path, 40)
    (tmp_path / "my_scores.py").write_text(
        "def brightest(outputs, labels):\n    return outputs['logits'].max(axis=1) + 1\n"
    )
    words = ["--inputs", inputs, "--labels", labels, "--metric", "my_scores:brightest"]
    missing = cli("verify", classifier, *words, "--better", "higher")
    assert missing.exit_code == 2
    assert "--code-dir" in missing.err
    words += ["--code-dir", tmp_path, "--better", "higher"]
    assert cli("verify", classifier, *words).exit_code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--labels", "labels.csv"], "name --inputs, too"),
        (["--metric", "top-1"], "name --labels"),
        (["--labels", "none.npy", "--inputs", "val.npz"], "none.npy does not exist"),
        (["--labels", "y", "--inputs", "val.npz"], "nor a member of val.npz, which holds 'x'"),
        (["--labels", "labels.csv", "--inputs", "val.npz", "--batch-size", "0"], "0 is not in"),
    ],
)
def test_what_is_missing_is_named(
    cli: Cli,
    classifier: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
):
    write_data(tmp_path, 40)
    monkeypatch.chdir(tmp_path)
    shown = cli("verify", classifier, *words)
    assert shown.exit_code == 2
    assert message in shown.err
