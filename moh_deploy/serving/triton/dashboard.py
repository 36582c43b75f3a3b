"""Make the Grafana dashboard of a bundle: requests, batches, and what the routers do.

Source: https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/
"""

from __future__ import annotations

import json
from dataclasses import dataclass

_SCHEMA_VERSION = 39
_HEIGHT, _WIDTH, _COLUMNS = 8, 12, 2
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True)
class _Panel:
    """A chart over time: Grafana's unit; expressions, in which `$m` selects the model; legends."""

    title: str
    unit: str
    targets: tuple[tuple[str, str], ...]


_RATE = "[$__rate_interval]"
_PANELS = (
    _Panel(
        "Requests",
        "reqps",
        (
            (f"sum(rate(nv_inference_request_success{{$m}}{_RATE}))", "answered"),
            (f"sum(rate(nv_inference_request_failure{{$m}}{_RATE}))", "failed"),
        ),
    ),
    _Panel(
        "Mean time of a request",
        "µs",
        tuple(
            (
                f"sum(rate(nv_inference_{part}_duration_us{{$m}}{_RATE}))"
                f" / sum(rate(nv_inference_request_success{{$m}}{_RATE}))",
                name,
            )
            for part, name in (
                ("request", "whole"),
                ("queue", "in the queue"),
                ("compute_infer", "in the model"),
            )
        ),
    ),
    _Panel(
        "Samples in a batch",
        "short",
        (
            (
                f"sum(rate(nv_inference_count{{$m}}{_RATE}))"
                f" / sum(rate(nv_inference_exec_count{{$m}}{_RATE}))",
                "mean",
            ),
        ),
    ),
    _Panel(
        "Requests that wait",
        "short",
        (("sum(nv_inference_pending_request_count{$m})", "waiting"),),
    ),
    _Panel(
        "Routed tokens",
        "short",
        ((f"sum by (layer) (rate(moh_routed_tokens_total{{$m}}{_RATE}))", "{{layer}}"),),
    ),
    _Panel(
        "Open heads for each token",
        "short",
        (
            (
                f"sum by (layer) (rate(moh_head_activations_total{{$m}}{_RATE}))"
                f" / sum by (layer) (rate(moh_sampled_tokens_total{{$m}}{_RATE}))",
                "{{layer}}",
            ),
        ),
    ),
    _Panel(
        "Gate mass of routed heads",
        "percentunit",
        (
            (
                f'sum by (layer) (rate(moh_gate_mass_total{{$m,kind="routed"}}{_RATE}))'
                f" / sum by (layer) (rate(moh_gate_mass_total{{$m}}{_RATE}))",
                "{{layer}}",
            ),
        ),
    ),
    _Panel(
        "Margin that a tenth of the choices stays below",
        "short",
        (
            (
                "histogram_quantile(0.1,"
                f" sum by (layer, le) (rate(moh_router_margin_bucket{{$m}}{_RATE})))",
                "{{layer}}",
            ),
        ),
    ),
    _Panel(
        "Gates that are not finite",
        "short",
        ((f"sum by (layer) (rate(moh_nonfinite_gates_total{{$m}}{_RATE}))", "{{layer}}"),),
    ),
    _Panel(
        "Distance from the reference by what chance explains",
        "short",
        (("max by (layer, statistic) (moh_drift_ratio{$m})", "{{layer}} {{statistic}}"),),
    ),
    _Panel(
        "Runs that hang",
        "short",
        (("sum(moh_hung_runs{$m})", "hung"),),
    ),
    _Panel("What answers", "short", (("sum by (rung) (moh_mode{$m})", "{{rung}}"),)),
    _Panel(
        "Requests that a lower rung answered",
        "reqps",
        (
            (
                f"sum by (reason, rung) (rate(moh_fallback_requests_total{{$m}}{_RATE}))",
                "{{reason}} → {{rung}}",
            ),
        ),
    ),
    _Panel(
        "Batches that another package was run on beside",
        "short",
        ((f"sum by (outcome) (rate(moh_shadow_batches_total{{$m}}{_RATE}))", "{{outcome}}"),),
    ),
)


def dashboard_text(model: str) -> str:
    """Return the dashboard as JSON that Grafana imports; it asks for the Prometheus to read from.

    Args:
        model: Name of the model in the server, which the dashboard's variable begins with.
    """
    content = {
        "title": f"MoH: {model}",
        "tags": ["moh-deploy", "triton"],
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "schemaVersion": _SCHEMA_VERSION,
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [_datasource_variable(), _model_variable(model)]},
        "panels": [_panel(index, panel) for index, panel in enumerate(_PANELS)],
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _panel(index: int, panel: _Panel) -> dict[str, object]:
    row, column = divmod(index, _COLUMNS)
    return {
        "id": index + 1,
        "type": "timeseries",
        "title": panel.title,
        "datasource": _DATASOURCE,
        "gridPos": {"h": _HEIGHT, "w": _WIDTH, "x": column * _WIDTH, "y": row * _HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": _DATASOURCE,
                "expr": expression.replace("$m", 'model="$model"'),
                "legendFormat": legend,
            }
            for number, (expression, legend) in enumerate(panel.targets)
        ],
    }


def _datasource_variable() -> dict[str, object]:
    return {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
    }


def _model_variable(model: str) -> dict[str, object]:
    return {
        "name": "model",
        "type": "query",
        "datasource": _DATASOURCE,
        "query": "label_values(nv_inference_request_success, model)",
        "current": {"text": model, "value": model},
        "refresh": 2,
    }
