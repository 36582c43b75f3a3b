"""Make the alert rules of a bundle, for Prometheus."""

from __future__ import annotations

import json
from dataclasses import dataclass

import yaml

_ROUTING_UNSEEN = "MohRoutingUnseen"


@dataclass(frozen=True)
class _Alert:
    """A rule; in its expression `{model}` selects the model, and `{first}` is the first rung."""

    name: str
    expression: str
    lasts: str
    severity: str
    summary: str


_ALERTS = (
    _Alert(
        "MohNoData",
        "absent(nv_inference_request_success{{{model}}})",
        "5m",
        "critical",
        "nothing is heard of the server, or it has not loaded the model",
    ),
    _Alert(
        _ROUTING_UNSEEN,
        "sum(rate(nv_inference_count{{{model}}}[10m])) > 0"
        " unless sum(rate(moh_routed_tokens_total{{{model}}}[10m])) > 0",
        "10m",
        "warning",
        "requests are answered, and no routing is counted: drift would go unseen",
    ),
    _Alert(
        "MohRequestsFail",
        "sum(rate(nv_inference_request_failure{{{model}}}[5m]))"
        " / (sum(rate(nv_inference_request_success{{{model}}}[5m]))"
        " + sum(rate(nv_inference_request_failure{{{model}}}[5m]))) > 0.01",
        "5m",
        "warning",
        "more than 1 % of requests fail",
    ),
    _Alert(
        "MohQueueGrows",
        "sum(nv_inference_pending_request_count{{{model}}}) > 512",
        "2m",
        "warning",
        "more than 512 requests wait; where they are joined, the server refuses beyond 1024",
    ),
    _Alert(
        "MohNonfiniteGates",
        "sum by (layer) (increase(moh_nonfinite_gates_total{{{model}}}[5m])) > 0",
        "0m",
        "critical",
        "a router computes NaN or infinity",
    ),
    _Alert(
        "MohDrift",
        'sum(increase(moh_drift_windows_total{{{model},outcome="alarm"}}[1h])) > 0',
        "0m",
        "warning",
        "routing is not what it was with the reference's traffic",
    ),
    _Alert(
        "MohDriftUnjudged",
        "sum(moh_reference_info{{{model}}}) > 0"
        " unless sum(increase(moh_drift_windows_total{{{model}}}[1d])) > 0",
        "1d",
        "warning",
        "for a day no window had requests enough to be compared with the reference",
    ),
    _Alert(
        "MohInstanceSilent",
        "time() - (moh_heartbeat_seconds{{{model}}} > 0) > 60",
        "0m",
        "critical",
        "the process of an instance is gone: it has to be started again",
    ),
    _Alert(
        "MohHungRun",
        "sum(moh_hung_runs{{{model}}}) > 0",
        "0m",
        "critical",
        "a run does not end: its instance answers nobody until the process is started again",
    ),
    _Alert(
        "MohFallback",
        "sum by (rung) (moh_mode{{{model},rung!={first}}}) > 0",
        "5m",
        "warning",
        "an instance answers by another rung than the first",
    ),
    _Alert(
        "MohRefused",
        "sum by (reason) (increase(moh_refused_requests_total{{{model}}}[5m])) > 0",
        "0m",
        "critical",
        "requests got an error because no rung could answer them rightly",
    ),
    _Alert(
        "MohShadowDiffers",
        'increase(moh_shadow_batches_total{{{model},outcome="differing"}}[1h]) > 0',
        "0m",
        "warning",
        "the package beside answers differently",
    ),
)


def alerts_text(model: str, *, first_rung: str = "kernels", counts_routing: bool = True) -> str:
    """Return the rules as YAML, for a Prometheus that scrapes the server's metrics port.

    Args:
        model: Name of the model in the server.
        first_rung: The rung of the guard that answers while all is well.
        counts_routing: The server counts what routers do; where it does not, none can miss it.
    """
    parts = {"model": f'model="{model}"', "first": json.dumps(first_rung, ensure_ascii=False)}
    rules = [
        {
            "alert": one.name,
            "expr": one.expression.format(**parts),
            "for": one.lasts,
            "labels": {"severity": one.severity, "model": model},
            "annotations": {"summary": f"{model}: {one.summary}"},
        }
        for one in _ALERTS
        if counts_routing or one.name != _ROUTING_UNSEEN
    ]
    content = {"groups": [{"name": f"moh-deploy {model}", "rules": rules}]}
    return yaml.safe_dump(content, sort_keys=False, width=100)
