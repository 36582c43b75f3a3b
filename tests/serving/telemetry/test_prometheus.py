"""Metrics in the text format of Prometheus."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys

import pytest

from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.serving import Family, Series
from moh_deploy.serving.telemetry.prometheus import parse_text, prometheus_text

FAMILIES = (
    Family("moh_routed_tokens_total", "Tokens.", "counter", (Series({"layer": "a"}, 12),)),
    Family("moh_mode", "Which rung\nserves.", "gauge", (Series({"arm": 'x"\\\n'}, 1),)),
    Family(
        "moh_router_margin",
        "Margins.",
        "histogram",
        (Series({"layer": "a"}, 1.5, {0.1: 2, 1.0: 3, math.inf: 4}),),
    ),
)


def test_text_is_read_back_as_it_was_counted():
    found = parse_text(prometheus_text(FAMILIES), "text")
    assert found["moh_routed_tokens_total"] == [({"layer": "a"}, 12)]
    assert found["moh_mode"] == [({"arm": 'x"\\\n'}, 1)]
    buckets = {labels["le"]: value for labels, value in found["moh_router_margin_bucket"]}
    assert buckets == {"0.1": 2, "1.0": 3, "+Inf": 4}
    assert found["moh_router_margin_sum"] == [({"layer": "a"}, 1.5)]
    assert found["moh_router_margin_count"] == [({"layer": "a"}, 4)]


def test_counters_keep_their_suffix_and_each_family_its_type():
    lines = prometheus_text(FAMILIES).splitlines()
    assert 'moh_routed_tokens_total{layer="a"} 12.0' in lines
    assert "# TYPE moh_routed_tokens_total counter" in lines
    assert "# TYPE moh_router_margin histogram" in lines


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_has_nothing_to_say():
    text = prometheus_text(FAMILIES)
    command = ["promtool", "check", "metrics"]
    found = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


@pytest.mark.parametrize("text", ["<html>no</html>", "a{b=c} 1\n", "moh_x one\n"])
def test_what_is_no_metrics_is_refused(text: str):
    with pytest.raises(ConfigError, match="http://h/ does not answer in the text format"):
        parse_text(text, "http://h/")


def test_missing_client_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(BackendError, match="need the package prometheus_client"):
        prometheus_text(FAMILIES)
