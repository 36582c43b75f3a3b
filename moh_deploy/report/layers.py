"""How reports show MoH layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table

from moh_deploy.package import LayerInfo
from moh_deploy.report.tables import percent, table


def layer_table(
    title: str, layers: Iterable[LayerInfo], last: str, values: Sequence[object]
) -> Table:
    """Return a table of layers.

    Args:
        title: What stands above it.
        layers: One a row.
        last: Name of the last column.
        values: The last column's values, one a layer.
    """
    columns = ["layer", "#heads", "#shared", "#top-k", "#active", "router", last]
    rows = [(*_cells(layer), value) for layer, value in zip(layers, values, strict=True)]
    return table(title, columns, rows)


def reasons(layers: Iterable[LayerInfo]) -> list[str]:
    """Return why layers were not wholly replaced, one line a reason: large models repeat one."""
    paths: dict[str, list[str]] = {}
    for layer in layers:
        if layer.reason is not None:
            paths.setdefault(layer.reason, []).append(layer.path)
    return [f"{', '.join(names)}: {reason}" for reason, names in paths.items()]


def _cells(layer: LayerInfo) -> tuple[object, ...]:
    return (
        layer.path,
        layer.num_heads,
        layer.num_shared_heads,
        layer.top_k,
        percent(layer.active_share),
        layer.router if layer.router_replaced else f"{layer.router} (plain ops)",
    )
