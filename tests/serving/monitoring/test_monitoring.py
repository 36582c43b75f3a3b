"""Alert rules fire where they should, and every panel has data, on `serve` and on Triton.

`promtool` judges the rules on series that are made of metrics recorded of both servers, see
`record.py`.
"""

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from moh_deploy.serving.triton.config_pbtxt import filled
from tests.nightly import nightly, sampled
from tests.serving.monitoring.record import (
    ALERTS,
    DASHBOARD,
    HERE,
    MODEL,
    SERVERS,
    Scrape,
    record,
    scrapes_in,
    series_of,
)
from tests.serving.triton.triton_environment import python_or_skip


def promtool(
    folder: Path, rules: str, series: Sequence[Mapping[str, str]], expected: Any, step: int = 1
) -> str:
    """Let promtool judge; return what it says is wrong, or nothing."""
    (folder / "alerts.yaml").write_text(rules)
    content = {
        "rule_files": ["alerts.yaml"],
        "evaluation_interval": f"{step}m",
        "tests": [
            {"interval": f"{step}m", "input_series": series, "promql_expr_test": expected},
        ],
    }
    (folder / "test.json").write_text(json.dumps(content))
    ran = subprocess.run(
        ["promtool", "test", "rules", str(folder / "test.json")],
        capture_output=True,
        text=True,
        check=False,
    )
    return "" if ran.returncode == 0 else ran.stdout + ran.stderr


def firing(alerts: Sequence[str], minutes: int) -> dict[str, object]:
    """Return the test that these alerts fire at this time, and no others."""
    samples = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in alerts]
    expression = 'group by (alertname) (ALERTS{alertstate="firing"})'
    return {"expr": expression, "eval_time": f"{minutes}m", "exp_samples": samples}


@dataclass(frozen=True)
class Case:
    """What happens to a server after an hour of usual traffic, and what fires in the end."""

    timeline: tuple[tuple[str, int], ...]  # names of scrapes and minutes
    alerts: tuple[str, ...]  # what fires then, and nothing else; nothing fires before
    options: Mapping[str, Any] = field(default_factory=dict)  # of `series_of`, for the whole time
    servers: tuple[str, ...] = SERVERS  # where it can happen


CASES = {
    "healthy": Case((), ()),
    "idle": Case((("start", 60),), ()),
    "server gone": Case((("gone", 10),), ("MohNoData",)),
    "client errors": Case((("client errors", 20),), ()),
    "refused": Case((("refused", 20),), ("MohRefused", "MohRequestsFail")),
    "one window of drift": Case((("one alarm", 5),), ()),
    "two windows of drift": Case((("one alarm", 5), ("two alarms", 5)), ("MohDrift",)),
    "not finite": Case((("not finite", 4),), ("MohNonfiniteGates", "MohShadowDiffers")),
    "queue": Case((("queue", 5),), ("MohQueueGrows",)),
    "fallback": Case((("fallback", 10),), ("MohFallback",)),
    # Nothing makes a real run hang at will: this gauge is not as it was recorded.
    "a run hangs": Case((), ("MohHungRun",), {"gauges": {"moh_hung_runs": 1}}),
    # It was on a lower rung before.
    "instance gone": Case(
        (("silent", 10),),
        ("MohFallback", "MohInstanceSilent", "MohRequestsFail"),
        servers=("triton",),
    ),
    "routing unseen": Case(
        (("healthy", 60),), ("MohRoutingUnseen",), {"frozen": "moh_routed_tokens_total"}
    ),
    "drift unjudged": Case(
        (("healthy", 3 * 24 * 60),),
        ("MohDriftUnjudged",),
        {"frozen": "moh_drift_windows_total", "step": 60},
    ),
}
IN_CASES = [
    pytest.param(server, name, id=f"{server}-{name}")
    for name, case in CASES.items()
    for server in case.servers
]


def problem(folder: Path, scrapes: Mapping[str, Scrape], case: Case, rules: str) -> str:
    """Return what promtool finds wrong with a case."""
    series = series_of(scrapes, (("healthy", 60), *case.timeline), **case.options)
    minutes = 60 + sum(minutes for _, minutes in case.timeline)
    step = case.options.get("step", 1)
    expected = [firing(case.alerts, minutes - step)]
    if not case.options:
        expected.append(firing((), 59))
    return promtool(folder, rules, series, expected, step)


def recorded(server: str) -> dict[str, Scrape]:
    return scrapes_in((HERE / f"{server}.txt").read_text())


@sampled(3)
@pytest.mark.parametrize(("server", "name"), IN_CASES)
def test_alerts_fire_where_they_should(server: str, name: str, tmp_path: Path):
    assert not problem(tmp_path, recorded(server), CASES[name], ALERTS)


def test_each_alert_fires_in_a_case_on_each_server():
    for server in SERVERS:
        here = [case for case in CASES.values() if server in case.servers]
        fired = {alert for case in here for alert in case.alerts}
        # An instance of `serve` is a thread of the process that shows the metrics.
        silent = {"MohInstanceSilent"} if server == "serve" else set()
        assert fired | silent == set(rules())


def rules() -> dict[str, dict[str, Any]]:
    (group,) = yaml.safe_load(ALERTS)["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


def dashboard() -> Any:
    return json.loads(DASHBOARD)


def panel_expressions() -> list[str]:
    return [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]


@pytest.mark.parametrize("server", SERVERS)
def test_every_expression_of_the_dashboard_has_data(server: str, tmp_path: Path):
    scrapes = recorded(server)
    parts = [(name, 5) for name in scrapes if name not in ("start", "silent")]
    minutes = sum(part for _, part in parts)
    given = [
        expression.replace("$__rate_interval", f"{minutes}m").replace("$model", MODEL)
        for expression in panel_expressions()
    ]
    # What is not a number is no data: it is not above anything.
    tests = [
        {
            "expr": f"group(({expression}) > -1)",
            "eval_time": f"{minutes - 1}m",
            "exp_samples": [{"labels": "{}", "value": 1}],
        }
        for expression in given
    ]
    series = series_of(scrapes, parts)
    assert not promtool(tmp_path, ALERTS, series, tests)
    tests[0]["expr"] = str(tests[0]["expr"]).replace("nv_inf", "no_").replace("moh_re", "no_")
    assert promtool(tmp_path, ALERTS, series, tests)


@nightly
@pytest.mark.parametrize("server", SERVERS)
def test_servers_show_what_was_recorded(server: str, tmp_path: Path):
    path = tmp_path / "found.txt"
    record(server, path, tmp_path)
    found, known = scrapes_in(path.read_text()), recorded(server)
    assert list(found) == list(known)

    def named(scrapes: Mapping[str, Scrape]) -> set[str]:
        return {key.partition("{")[0] for scrape in scrapes.values() for key in scrape.values}

    assert named(found) == named(known)
    for case in CASES.values():
        if server in case.servers:
            assert not problem(tmp_path, found, case, ALERTS)


def test_rules_are_of_this_model_only():
    for expression in [*(rule["expr"] for rule in rules().values()), *panel_expressions()]:
        selectors = re.findall(r"\b(?:nv|moh)_\w+\{([^}]*)\}", expression)
        assert len(selectors) == len(re.findall(r"\b(?:nv|moh)_\w+", expression)) > 0
        assert all('model="' in selector for selector in selectors)


def test_rules_are_those_of_what_is_served():
    text = filled("alerts.yaml", model="digits", first_rung='the "fast" one', counts_routing=False)
    assert "MohRoutingUnseen" not in text
    (group,) = yaml.safe_load(text)["groups"]
    (rule,) = (rule for rule in group["rules"] if rule["alert"] == "MohFallback")
    assert r'rung!="the \"fast\" one"' in rule["expr"]


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
        return [path for key in given for path in lost(given[key], kept.get(key), f"{place}.{key}")]
    if isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        both = enumerate(zip(given, kept, strict=True))
        return [path for index, (a, b) in both for path in lost(a, b, f"{place}.{index}")]
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
