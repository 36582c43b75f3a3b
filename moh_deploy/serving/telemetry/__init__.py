"""Count the routing of a served model, request by request, for exporters."""

from moh_deploy.serving.telemetry.counters import Telemetry
from moh_deploy.serving.telemetry.routing import (
    CountLayout,
    LayerColumns,
    RecordedWindow,
    read_window,
)

__all__ = ["CountLayout", "LayerColumns", "RecordedWindow", "Telemetry", "read_window"]
