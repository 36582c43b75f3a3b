"""Format MoH layers for reports."""

from collections.abc import Iterable, Mapping, Sequence

from moh_deploy import package as pkg
from moh_deploy.ops.routers import form_named
from moh_deploy.package.cache_buffers import BUFFER
from moh_deploy.report.document import DETAILED, Cell, Column, Share, Table, percent
from moh_deploy.report.report import count
from moh_deploy.runtime.layer_runs import LayerImpl, LayerRun

_WORDS: dict[LayerImpl | None, str] = {
    "kernel": "on a kernel",
    "function": "as function body",
    "dense": "dense by choice",
    None: "in plain operators",
}


def layer_table(
    title: str, layers: Iterable[pkg.LayerInfo], last: str, values: Sequence[Cell]
) -> Table:
    """Return a table of layers.

    Args:
        title: What stands above it.
        layers: One a row.
        last: Name of the last column.
        values: The last column's values, one a layer.
    """
    forms = (Column("attention", DETAILED), Column("router", DETAILED))
    columns = ("layer", "#heads", "#shared", "#top-k", "#active", *forms, last)
    rows: list[tuple[Cell, ...]] = []
    for layer, value in zip(layers, values, strict=True):
        is_plain = not layer.router_replaced and not form_named(layer.router).is_constant
        router = f"{layer.router} (plain ops)" if is_plain else layer.router
        heads = layer.num_heads, layer.num_shared_heads, layer.top_k, Share(layer.active_share)
        rows.append((layer.path, *heads, layer.op or "plain ops", router, value))
    return Table(title, columns, rows)


def reasons(layers: Iterable[pkg.LayerInfo]) -> list[str]:
    """Return why layers were not wholly replaced, one line a reason: large models repeat one."""
    return _by_text((layer.path, layer.reason) for layer in layers)


def masks(layers: Iterable[pkg.LayerInfo]) -> list[str]:
    """Return what structure masks have, or why they stayed tensors, one line a text."""
    return _by_text(
        (layer.path, None if layer.mask is None else f"mask: {layer.mask}") for layer in layers
    )


def _by_text(layers: Iterable[tuple[str, str | None]]) -> list[str]:
    paths: dict[str, list[str]] = {}
    for path, text in layers:
        if text is not None:
            paths.setdefault(text, []).append(path)
    return [f"{paths_text(names)}: {text}" for text, names in paths.items()]


def router_legend(layers: Iterable[pkg.LayerInfo]) -> list[str]:
    """Return what the routers' names in a table mean, one line a form."""
    names = dict.fromkeys(layer.router for layer in layers)
    return [f"router {name}: {form_named(name).doc}" for name in names]


def paths_text(paths: Sequence[str]) -> str:
    """Return the paths of layers that have something in common; of many, the first and the last."""
    if len(paths) <= 4:
        return ", ".join(paths)
    return f"{paths[0]} ... {paths[-1]} ({len(paths)} layers)"


_OTHER_GATES: dict[pkg.OtherGates, str] = {
    "channels": "with gates of channels, not of heads",
    "heads": "whose heads are scaled by constants, none of them 0",
}


def not_layers(
    num_layers: int,
    near_misses: Sequence[pkg.NearMiss],
    ungated: int,
    other_gates: Mapping[pkg.OtherGates, int],
) -> list[str]:
    """Return what is said of attention that belongs to no MoH layer.

    Args:
        num_layers: How many layers were recognised.
        near_misses: What looks like one and was not read as such.
        ungated: How many attentions have no gates.
        other_gates: How many have gates that open or close no head, by what these multiply.
    """
    lines: list[str] = []
    number = sum(len(miss.paths) for miss in near_misses)
    if number:
        looks = "looks" if number == 1 else "look"
        begin = "Besides," if num_layers else "No MoH layer was recognised, but"
        lines.append(f"{begin} {count(number, 'place')} {looks} like one:")
        lines += map(near_miss_text, near_misses)
    elif not num_layers:
        lines.append("This model has no MoH layer: it is an ordinary ONNX model.")
    plain = [(ungated, "without gates"), *((n, _OTHER_GATES[k]) for k, n in other_gates.items())]
    for number, gates in plain:
        if number:
            left = "it is" if number == 1 else "they are"
            lines.append(f"{count(number, 'attention')} {gates}: left as {left}.")
    return lines


def near_miss_text(miss: pkg.NearMiss) -> str:
    """Return a sentence on what looks like MoH layers of one kind."""
    place = "" if miss.place is None else f" ({miss.place})"
    gates = f"; gates are applied at {miss.gates}" if miss.gates not in (None, miss.place) else ""
    return f"{paths_text(miss.paths)}: {miss.reason}{place}{gates}"


def other_router_text(other: pkg.OtherRouter) -> str:
    """Return a sentence on routers of one kind that weigh no attention."""
    place = "" if other.place is None else f" ({other.place})"
    gates = "" if other.gates is None else f" ({other.gates})"
    return (
        f"{paths_text(other.paths)}: {other.router}{place} multiplies what {other.weighs}"
        f" makes{gates}: a router that weighs no attention, left as it is"
    )


def constant_gates(layers: Sequence[pkg.LayerInfo]) -> list[str]:
    """Return what is skipped whatever the input is, one line a layer with constant gates, and how
    to cut the weights of heads that are closed in all layers.
    """
    lines: list[str] = []
    for layer in layers:
        if form_named(layer.router).is_constant and layer.active_share is not None:
            line = f"{layer.path}: no input changes its gates; {percent(1 - layer.active_share)}"
            line += " of the (query, head) pairs are closed at export"
            if layer.closed_heads:
                heads = ", ".join(map(str, layer.closed_heads))
                noun = "head" if len(layer.closed_heads) == 1 else "heads"
                line += f", for every query those of {noun} {heads}"
            lines.append(line)
    # Where inputs decide the gates of a layer, its heads would be cut, too.
    if layers and all(form_named(layer.router).is_constant for layer in layers):
        keep = max(1, *(layer.num_heads - len(layer.closed_heads) for layer in layers))
        if keep < min(layer.num_heads for layer in layers):
            command = f"`moh-deploy prune PACKAGE --keep {keep} -o OUTPUT`"
            lines.append(f"{command} cuts the weights of heads that are closed for every query.")
    return lines


def kept_text(kept: pkg.KeptOperators) -> str:
    """Return a sentence on operators outside of the layers that stay."""
    inserted, operators = ", ".join(kept.inserted), ", ".join(kept.operators)
    return f"{kept.path}: {kept.reason}; not replaced by {inserted}: {operators}"


def caches_text(caches: pkg.CachesInPlace) -> str:
    """Return how caches in place are used."""
    many = count(len(caches.buffers), "cache")
    return (
        f"{many} written in place, dimension '{BUFFER}'; filled before a call: {caches.past_length}"
    )


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
        router = "gates constant" if run.constant_gates else f"router {_WORDS[run.router_runs_as]}"
        text = f"attention {_WORDS[run.runs_as]}, {router}"
        if run.projections_run_as is not None:
            text += f", projections {_WORDS[run.projections_run_as]}"
        if run.by_size is not None:
            text += f", by choice {run.by_size}"
        paths.setdefault(text, []).append(run.path)
    most = max(paths, key=lambda way: len(paths[way]))
    others = [f"{', '.join(names)}: {way}" for way, names in paths.items() if way != most]
    return "; except ".join([f"{count(len(runs), 'MoH layer')}: {most}", *others])


def nodes_text(kernel_nodes: int, function_nodes: int) -> str:
    """Return a sentence on what runs all nodes of custom ops, those of no MoH layer included."""
    return f"custom ops: {kernel_nodes} on a kernel, {function_nodes} as function body"
