"""The files for Prometheus, Grafana and KServe, read by other programs where they can be had."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from moh_deploy.runtime.open_runner import find_deployed
from moh_deploy.serving import ServingSettings, open_served
from moh_deploy.serving.drift.live_drift import LiveDrift
from moh_deploy.serving.drift.reference import profile_of
from moh_deploy.serving.runs_under_way import RunsUnderWay
from moh_deploy.serving.triton.alerts import alerts_text
from moh_deploy.serving.triton.dashboard import dashboard_text
from moh_deploy.serving.triton.python_model import heartbeat
from tests.handmade_package import write_package
from tests.nightly import nightly, sampled
from tests.serving.drift.traffic import requests, window
from tests.serving.triton.triton_environment import python_or_skip

# Of Triton 2.51, as its metrics port shows them.
TRITON = {
    "nv_inference_request_success",
    "nv_inference_request_failure",
    "nv_inference_count",
    "nv_inference_exec_count",
    "nv_inference_pending_request_count",
    "nv_inference_request_duration_us",
    "nv_inference_queue_duration_us",
    "nv_inference_compute_infer_duration_us",
}
METRIC = re.compile(r"\b(?:nv|moh)_\w+")


def dashboard() -> Any:
    return json.loads(dashboard_text("digits"))


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(alerts_text("digits"))["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """What a server of a package with a guard, a shadow and a reference counts: name to labels."""
    folder = tmp_path_factory.mktemp("series")
    package = write_package(folder / "package").root
    settings = ServingSettings("m", guard=True, shadow=str(package))
    served = open_served(find_deployed(package), settings)
    found = {name: set[str]() for name in TRITON}
    assert served.telemetry is not None
    reference = profile_of(window(requests(120, seed=0)), window=50, rate=0.05)
    drift = LiveDrift(reference, "d", served.telemetry)
    for family in (
        *served.families(),
        *drift.families(),
        *RunsUnderWay(1, hung_s=60).families(),
        heartbeat(0.0),
    ):
        labels = {label for one in family.samples for label in one.labels} | {"model", "version"}
        names = [family.name]
        if family.kind == "histogram":
            names = [f"{family.name}_{part}" for part in ("bucket", "sum", "count")]
            labels |= {"le"}
        found |= dict.fromkeys(names, labels)
    served.close()
    return found


def expressions() -> list[str]:
    panels = [target["expr"] for one in dashboard()["panels"] for target in one["targets"]]
    return [*panels, *(rule["expr"] for rule in rules())]


@sampled(4)
@pytest.mark.parametrize("expression", expressions())
def test_expression_asks_for_what_is_counted(expression: str, series: Mapping[str, set[str]]):
    for name in METRIC.findall(expression):
        assert name in series, f"{name} is counted by nobody"
    for name in re.findall(r"(?:rate|increase)\((moh_\w+)", expression):
        assert name.endswith(("_total", "_bucket"))


# A test of the test above: what it compares with is not made of the expressions.
def test_metric_that_nobody_counts_would_be_noticed(series: Mapping[str, set[str]]):
    assert "moh_routed_tokens" not in series
    assert {"moh_routed_tokens_total", "moh_mode", "moh_router_margin_bucket"} <= series.keys()


def test_rules_are_of_this_model_only():
    for expression in expressions():
        selectors = re.findall(r"\{([^}]*)\}", expression)
        assert selectors
        assert all('model="' in one for one in selectors)


def test_rules_are_those_of_what_is_served():
    text = alerts_text("digits", first_rung='the "fast" one', counts_routing=False)
    assert "MohRoutingUnseen" not in text
    (group,) = yaml.safe_load(text)["groups"]
    (rule,) = (one for one in group["rules"] if one["alert"] == "MohFallback")
    assert r'rung!="the \"fast\" one"' in rule["expr"]
    assert {"MohRoutingUnseen", "MohFallback"} <= {one["alert"] for one in rules()}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_takes_the_rules(tmp_path: Path):
    path = tmp_path / "alerts.yaml"
    for text, is_right in (
        (alerts_text("digits"), True),
        (alerts_text("digits").replace("rate(", "rates("), False),
    ):
        path.write_text(text)
        ran = subprocess.run(["promtool", "check", "rules", str(path)], check=False)
        assert (ran.returncode == 0) is is_right


ROUND_TRIP = """
import json, sys
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
register_default_plugins()
read = Dashboard.from_json(json.load(sys.stdin))
print(JSONEncoder(sort_keys=True).encode(read))
"""


def lost(given: object, kept: object, place: str = "") -> list[str]:
    """Return the places of what a reader did not keep as it was given."""
    if isinstance(given, dict) and isinstance(kept, dict):
        return [one for key in given for one in lost(given[key], kept.get(key), f"{place}.{key}")]
    if isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        both = enumerate(zip(given, kept, strict=True))
        return [one for index, (a, b) in both for one in lost(a, b, f"{place}.{index}")]
    return [] if given == kept else [place]


@nightly
def test_grafana_has_every_key_of_the_dashboard():
    python, given = python_or_skip(), dashboard()

    def read(content: Any) -> Any:
        ran = subprocess.run(
            [python, "-c", ROUND_TRIP],
            input=json.dumps(content),
            capture_output=True,
            text=True,
            check=True,
        )
        return json.loads(ran.stdout)

    assert lost(given, read(given)) == []
    # It would drop a key that it does not know.
    given["panels"][0]["gridpos"] = given["panels"][0].pop("gridPos")
    assert lost(given, read(given)) == [".panels.0.gridpos"]


def test_panels_stand_side_by_side():
    taken = set()
    for panel in dashboard()["panels"]:
        grid = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(grid["x"], grid["x"] + grid["w"])
            for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & taken
        assert grid["x"] + grid["w"] <= 24
        taken |= cells
