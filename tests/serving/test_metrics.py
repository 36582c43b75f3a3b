"""Metrics in the text format of Prometheus."""

import math
import shutil
import subprocess
import sys

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.serving.metrics import (
    OPENMETRICS,
    Exemplar,
    Family,
    Series,
    Trace,
    exposition,
    parse_text,
)

FAMILIES = (
    Family("moh_routed_tokens_total", "Tokens.", "counter", (Series({"layer": "a"}, 12),)),
    Family("moh_mode", "Which rung\nserves.", "gauge", (Series({"arm": 'x"\\\n'}, 1),)),
    Family(
        "moh_router_margin",
        "Margins.",
        "histogram",
        (Series({"layer": "a"}, 1.5, {0.1: 2, 1.0: 3, math.inf: 4}),),
    ),
    Family(
        "moh_request_seconds",
        "Seconds.",
        "histogram",
        (Series({}, 2.5, {1.0: 1, math.inf: 2}, {math.inf: Exemplar("4bf9", 2.0, 1.7e9)}),),
    ),
)
# What Prometheus 2.53 sends.
ASKS = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"


def test_text_is_read_back_as_it_was_counted():
    found = parse_text(exposition(FAMILIES)[0], "text")
    assert found["moh_routed_tokens_total"] == [({"layer": "a"}, 12)]
    assert found["moh_mode"] == [({"arm": 'x"\\\n'}, 1)]
    buckets = {labels["le"]: value for labels, value in found["moh_router_margin_bucket"]}
    assert buckets == {"0.1": 2, "1.0": 3, "+Inf": 4}
    assert found["moh_router_margin_sum"] == [({"layer": "a"}, 1.5)]
    assert found["moh_router_margin_count"] == [({"layer": "a"}, 4)]


def test_counters_keep_their_suffix_and_each_family_its_type():
    lines = exposition(FAMILIES)[0].splitlines()
    assert 'moh_routed_tokens_total{layer="a"} 12.0' in lines
    assert "# TYPE moh_routed_tokens_total counter" in lines
    assert "# TYPE moh_router_margin histogram" in lines


@pytest.mark.parametrize("accept", [ASKS, "application/openmetrics-text", "a/b, " + ASKS.upper()])
def test_openmetrics_is_for_those_that_ask_and_has_exemplars(accept: str):
    text, content_type = exposition(FAMILIES, accept)
    assert content_type == f"{OPENMETRICS}; version=1.0.0; charset=utf-8"
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert {name: family.type for name, family in families.items()} == {
        "moh_routed_tokens": "counter",
        "moh_mode": "gauge",
        "moh_router_margin": "histogram",
        "moh_request_seconds": "histogram",
    }
    assert families["moh_request_seconds"].unit == "seconds"
    samples = families["moh_request_seconds"].samples
    (shown,) = [(sample.labels["le"], sample.exemplar) for sample in samples if sample.exemplar]
    assert (shown[0], shown[1].labels, shown[1].value) == ("+Inf", {"trace_id": "4bf9"}, 2.0)
    assert float(shown[1].timestamp) == 1.7e9


@pytest.mark.parametrize(
    "accept", ["", "*/*", "text/plain", "application/openmetrics-textual", ";"]
)
def test_others_get_the_text_format(accept: str):
    text, content_type = exposition(FAMILIES, accept)
    assert content_type.startswith("text/plain; version=0.0.4")
    assert "4bf9" not in text


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_has_nothing_to_say():
    text = exposition(FAMILIES)[0]
    command = ["promtool", "check", "metrics"]
    found = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


@pytest.mark.parametrize("text", ["<html>no</html>", "a{b=c} 1\n", "moh_x one\n"])
def test_what_is_no_metrics_is_refused(text: str):
    with pytest.raises(ConfigError, match="http://h/ does not answer in the text format"):
        parse_text(text, "http://h/")


def test_missing_client_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "prometheus_client.parser", None)
    with pytest.raises(BackendError, match="need the package prometheus_client"):
        parse_text("", "text")


ID, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{ID}-{SPAN}-01"


@pytest.mark.parametrize(
    ("header", "is_sampled"),
    [
        (PARENT, True),
        (f"00-{ID}-{SPAN}-00", False),
        (f"00-{ID}-{SPAN}-03", True),
        # A later version keeps the four fields of today.
        (f"cc-{ID}-{SPAN}-01", True),
        (f"cc-{ID}-{SPAN}-01-what.the-future-holds", True),
    ],
)
def test_trace_is_read(header: str, is_sampled: bool):
    assert Trace.of([header]) == Trace(ID, is_sampled)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [""],
        [PARENT, PARENT],
        [f"{PARENT}, {PARENT}"],
        [f"{PARENT}-more"],  # which version 00 has not
        [f"{PARENT}\n"],
        [f"ff-{ID}-{SPAN}-01"],
        [f"00-{'0' * 32}-{SPAN}-01"],
        [f"00-{ID}-{'0' * 16}-01"],
        [PARENT.upper()],
        [f"00-{ID}0-{SPAN}-01"],
        [f"00-{ID[:-1]}g-{SPAN}-01"],
        [f"00-{ID[:-1]}٣-{SPAN}-01"],
        [f"00-{ID}-{SPAN}-1"],
        [f"cc-{ID}-{SPAN}-01.more"],
        [f"cc-{ID}-{SPAN}-01-\x1b[2J\n"],
        ["0" * 65536],
    ],
)
def test_what_is_none_is_ignored(headers: list[str]):
    assert Trace.of(headers) is None
