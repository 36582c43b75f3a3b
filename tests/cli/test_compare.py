"""`moh-deploy compare`, with clocks of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.cli.run_cli import Cli
from tests.labelled_package import right_labels, samples, write_classifier
from tests.report.json_schema import validate


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    import numpy as np

    write_classifier(tmp_path / "right")
    one = samples(64)
    np.savez(tmp_path / "x.npz", **one.inputs)
    np.save(tmp_path / "labels.npy", right_labels(one))
    document = {
        "goal": "See it run",
        "reference": "right",
        "arms": {"right": {"path": "right"}, "bodies": {"path": "right", "kernels": "off"}},
        "inputs": ["x.npz"],
        "labels": "labels.npy",
        "quality": {"metric": "top-1", "may_lose": 0.5},
        "latency": {"at_least": 0.1},
        "seconds": 0.2,
        "warmup": 0.0,
        "threads": 1,
    }
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_decision_is_printed_as_json_and_written_as_files(cli: Cli, plan: Path, tmp_path: Path):
    html, markdown = tmp_path / "decision.html", tmp_path / "decision.md"
    ended = cli("compare", "--plan", plan, "--json", "--html", html, "--markdown", markdown)
    assert ended.exit_code == 0, ended.err
    found = ended.json
    validate("compare", found)
    assert [one["name"] for one in found["arms"]] == ["right", "bodies"]
    first = found["arms"][0]
    assert first["latency"][0]["rounds"] >= 7
    assert first["memory_mib"] > 10
    assert 0 < first["latency"][0]["router_share"] < 1 or first["not_measured"]
    assert "<svg" in html.read_text()
    assert found["plan_digest"] in markdown.read_text()


def test_plan_with_a_typing_error_ends_at_once_and_says_where(cli: Cli, plan: Path):
    plan.write_text(plan.read_text().replace("may_lose", "may_loose"))
    ended = cli("compare", "--plan", plan)
    assert ended.exit_code == 2
    assert "quality.may_loose is not a known key. Did you mean 'may_lose'?" in ended.err


def test_new_plan_is_written_to_fill_in(cli: Cli, tmp_path: Path):
    path = tmp_path / "plan.yaml"
    assert cli("compare", "--new-plan", path).exit_code == 0
    assert "goal:" in path.read_text()
    assert cli("compare", "--new-plan", path).exit_code == 2
    other = tmp_path / "other.yaml"
    assert cli("compare", "--new-plan", other, "--json").json == {"plan": str(other)}
    assert "expected a plan" in cli("compare").err
