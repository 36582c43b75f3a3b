"""`moh-deploy compare`, with clocks of its own."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from moh_deploy.package import OnnxPackage
from moh_deploy.perf.cost_model.prediction import break_even, platform_of
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.system.bounded_json import to_json_text
from tests.cli.run_cli import REPOSITORY, Cli
from tests.decision.cost.files import PRICES, decision, write
from tests.decision.simulated import decision_report
from tests.handmade_package import write_package
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
    assert [alternative["name"] for alternative in found["arms"]] == ["right", "bodies"]
    first = found["arms"][0]
    assert first["latency"][0]["rounds"] >= 7
    assert first["memory_mib"] > 10
    assert -1 < first["latency"][0]["router_share"] < 1 or first["not_measured"]
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


# `moh-deploy cost`: files that other commands and people wrote, and the answer in each form.


def arguments(folder: Path, **files: Any) -> list[str]:
    from_, prices, traffic = write(folder, **files)
    return ["--from", str(from_), "--prices", str(prices), "--traffic", str(traffic)]


def test_costs_are_printed_as_json_and_written_as_files(cli: Cli, tmp_path: Path):
    html, markdown = tmp_path / "cost.html", tmp_path / "cost.md"
    files = "--html", html, "--markdown", markdown
    ended = cli("cost", *arguments(tmp_path), *files, "--json")
    assert ended.exit_code == 0, ended.err
    validate("cost", ended.json)
    assert ended.json["arms"][1]["per_million"]["value"] == pytest.approx(22.0)
    assert "DENSE WOULD DO" in ended.json["decision"]
    assert 'id="costs"' in html.read_text()
    assert "no alternative pays against 'dense'" in markdown.read_text()


def test_decision_of_compare_itself_is_priced(cli: Cli, tmp_path: Path):
    given = arguments(tmp_path, traffic="batch,count\n1,1000\n")
    (tmp_path / "decision.json").write_text(to_json_text(decision_report().to_json()))
    ended = cli("cost", *given, "--days", "1", "--json")
    assert ended.exit_code == 0, ended.err
    assert [alternative["verdict"] for alternative in ended.json["arms"]] == [
        "reference",
        "win",
        "loss",
        "cannot tell",
    ]
    assert ended.json["requests_per_month"] == 30437.5


def test_prices_and_traffic_in_the_docs_are_taken(cli: Cli, tmp_path: Path):
    text = (REPOSITORY / "docs" / "cost.md").read_text()
    prices, traffic = (text.split(f"```{kind}\n")[1].split("```")[0] for kind in ("yaml", "csv"))
    ended = cli("cost", *arguments(tmp_path, prices=prices, traffic=traffic), "--json")
    assert ended.exit_code == 0, ended.err
    assert ended.json["engineering"] == 8000


def test_price_without_a_unit_and_sizes_not_measured_end_at_once(cli: Cli, tmp_path: Path):
    ended = cli("cost", *arguments(tmp_path, prices=PRICES.replace("3.60 USD", "3.60")))
    assert ended.exit_code == 2
    assert "machine.per_hour is 3.6: a price without a unit" in ended.err
    ended = cli("cost", *arguments(tmp_path, traffic="batch,count\n16,5\n"))
    assert ended.exit_code == 2
    assert "Add to `sizes` of the plan: {batch: 16}." in ended.err


def test_break_even_of_a_package_is_predicted_for_the_batches_of_traffic(cli: Cli, tmp_path: Path):
    package = write_package(tmp_path / "package")
    ended = cli("cost", *arguments(tmp_path), "--package", package.root, "--json")
    assert ended.exit_code == 0, ended.err
    validate("cost", ended.json)
    layer, together = ended.json["predicted"]
    assert (layer["path"], together["path"]) == ("blocks.0.attn", None)
    assert [size["batch"] for size in layer["sizes"]] == [1, 2, 4, 8]
    opened = OnnxPackage.open(package.root)
    found = open_runner(opened, Variant()).describe()
    # The example has two samples, so one of traffic is half of it.
    (half, *_) = break_even(
        [replace(opened.manifest.layers[0], batch=1)],
        found.layer_nodes,
        [1],
        example=1,
        platform=platform_of(opened.manifest, found.kernels),
    )
    assert layer["sizes"][0]["dense_ms"] == pytest.approx(half.sizes[0].dense_ms)
    text = cli("cost", *arguments(tmp_path), "--package", package.root).out
    assert "Predicted for attention and the projections beside it" in text
    assert "all layers" in text


def test_package_whose_batch_traffic_does_not_have_is_refused(cli: Cli, tmp_path: Path):
    package = write_package(tmp_path / "package")
    decided = decision(sizes=({"seq": 1}, {"seq": 8}))
    given = arguments(tmp_path, decided=decided, traffic="seq,count\n8,1\n")
    ended = cli("cost", *given, "--package", package.root)
    assert ended.exit_code == 2
    assert "its batch is 'batch', and traffic has seq" in ended.err
