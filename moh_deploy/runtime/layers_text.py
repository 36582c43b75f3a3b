"""How reports show MoH layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from moh_deploy.ops.routers import form_named
from moh_deploy.package import KeptOperators, LayerInfo
from moh_deploy.report.document import Cell, Share, Table
from moh_deploy.report.numbers import count, percent
from moh_deploy.runtime.layer_runs import LayerImpl, LayerRun

_WORDS: dict[LayerImpl | None, str] = {
    "kernel": "on a kernel",
    "function": "as function body",
    "dense": "dense by choice",
    None: "in plain operators",
}


def layer_table(
    title: str, layers: Iterable[LayerInfo], last: str, values: Sequence[Cell]
) -> Table:
    """Return a table of layers.

    Args:
        title: What stands above it.
        layers: One a row.
        last: Name of the last column.
        values: The last column's values, one a layer.
    """
    columns = ("layer", "#heads", "#shared", "#top-k", "#active", "attention", "router", last)
    rows = [(*_cells(layer), value) for layer, value in zip(layers, values, strict=True)]
    return Table(title, columns, rows)


def reasons(layers: Iterable[LayerInfo]) -> list[str]:
    """Return why layers were not wholly replaced, one line a reason: large models repeat one."""
    paths: dict[str, list[str]] = {}
    for layer in layers:
        if layer.reason is not None:
            paths.setdefault(layer.reason, []).append(layer.path)
    return [f"{', '.join(names)}: {reason}" for reason, names in paths.items()]


def constant_gates(layers: Iterable[LayerInfo]) -> list[str]:
    """Return what is skipped whatever the input is, one line a layer with constant gates."""
    lines: list[str] = []
    for layer in layers:
        if form_named(layer.router).is_constant and layer.active_share is not None:
            line = f"{layer.path}: no input changes its gates; {percent(1 - layer.active_share)}"
            line += " of the (query, head) pairs are closed at export"
            if layer.closed_heads:
                heads = ", ".join(map(str, layer.closed_heads))
                line += f", for every query those of {_noun(layer.closed_heads)} {heads}"
            lines.append(line)
    return lines


def _noun(heads: Sequence[int]) -> str:
    return "head" if len(heads) == 1 else "heads"


def kept_text(kept: KeptOperators) -> str:
    """Return a sentence on operators outside of the layers that stay."""
    inserted, operators = ", ".join(kept.inserted), ", ".join(kept.operators)
    return f"{kept.path}: {kept.reason}; not replaced by {inserted}: {operators}"


def runs_as(run: LayerRun) -> str:
    """Return a table's cell on what runs a layer, such as `kernel (router: function)`."""
    attention = run.runs_as or "not replaced"
    others = {"router": run.router_runs_as, "projections": run.projections_run_as}
    unlike = [f"{what}: {way}" for what, way in others.items() if way not in (None, run.runs_as)]
    ways = f"{attention} ({', '.join(unlike)})" if unlike else attention
    return ways if run.by_size is None else f"{ways}; {run.by_size}"


def runs_text(runs: Sequence[LayerRun]) -> str:
    """Return a sentence on what runs all layers; those unlike most are named."""
    if not runs:
        return "no MoH layer"
    paths: dict[str, list[str]] = {}
    for run in runs:
        paths.setdefault(_ways(run), []).append(run.path)
    most = max(paths, key=lambda way: len(paths[way]))
    others = [f"{', '.join(names)}: {way}" for way, names in paths.items() if way != most]
    return "; except ".join([f"{count(len(runs), 'MoH layer')}: {most}", *others])


def nodes_text(kernel_nodes: int, function_nodes: int) -> str:
    """Return a sentence on what runs all nodes of custom ops, those of no MoH layer included."""
    return f"custom ops: {kernel_nodes} on a kernel, {function_nodes} as function body"


def _ways(run: LayerRun) -> str:
    router = "gates constant" if run.constant_gates else f"router {_WORDS[run.router_runs_as]}"
    text = f"attention {_WORDS[run.runs_as]}, {router}"
    if run.projections_run_as is not None:
        text = f"{text}, projections {_WORDS[run.projections_run_as]}"
    return text if run.by_size is None else f"{text}, by choice {run.by_size}"


def _cells(layer: LayerInfo) -> tuple[Cell, ...]:
    is_constant = form_named(layer.router).is_constant
    return (
        layer.path,
        layer.num_heads,
        layer.num_shared_heads,
        layer.top_k,
        Share(layer.active_share),
        layer.op or "plain ops",
        layer.router if layer.router_replaced or is_constant else f"{layer.router} (plain ops)",
    )
