"""Write the alert rules for Prometheus and the dashboard for Grafana, from the templates beside.

Source: https://prometheus.io/docs/prometheus/latest/configuration/alerting_rules/
Source: https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/
"""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment


def alerts_text(model: str, *, first_rung: str = "kernels", counts_routing: bool = True) -> str:
    """Return the rules as YAML, for a Prometheus that scrapes the server's metrics port.

    Args:
        model: Name of the model in the server.
        first_rung: The rung of the guard that answers while all is well.
        counts_routing: The server counts what routers do; without, no rule waits for that.
    """
    template = _environment().get_template("alerts.yaml.j2")
    return template.render(model=model, first_rung=first_rung, counts_routing=counts_routing)


def dashboard_text(model: str) -> str:
    """Return the dashboard as JSON that Grafana imports; it asks for the Prometheus to read from.

    Args:
        model: Name of the model in the server, which the dashboard's variable begins with.
    """
    return _environment().get_template("dashboard.json.j2").render(model=model)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("moh_deploy.serving.monitoring"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # A string of JSON is one of YAML and of PromQL, too.
    environment.filters["quoted"] = lambda text: json.dumps(text, ensure_ascii=False)
    return environment
