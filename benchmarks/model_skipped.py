"""What a package skips, layer by layer: rows that are not computed, and the time that this saves.

Each node of a layer (attention and, where they are sparse, its two projections) is run by itself,
on the values that reach it in the whole model, in three ways that take turns: as the package has
it; the same with every gate open; and as its function body in ordinary operators.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime as ort
from interleaving import figure, interleaved_ms
from model_nodes import NodeModel, layer_nodes, split_layers
from ort_session import kernel_session, plain_session
from rich.table import Table

from moh_deploy.graph.choose_layers import write_choices
from moh_deploy.package import LayerInfo, OnnxPackage, at_sizes
from moh_deploy.runtime.input_check import check_inputs
from moh_deploy.runtime.kernel_use import KernelUse
from moh_deploy.runtime.onnxruntime.values import to_ort
from moh_deploy.system.npz import Array


@dataclass(frozen=True)
class Rows:
    """Rows of one head for one token.

    Attributes:
        computed: In the package.
        dense: Of the layer that computes every head.
    """

    computed: int
    dense: int

    def __str__(self) -> str:
        return f"{self.computed}/{self.dense}"


@dataclass(frozen=True)
class LayerTime:
    """CPU time of a layer's nodes, medians, ms.

    Attributes:
        moh: As the package has them.
        every_head: The same with every gate open.
        dense: Their function bodies in ordinary operators.
    """

    moh: float
    every_head: float
    dense: float

    @property
    def gain(self) -> float:
        return self.dense / self.moh


@dataclass(frozen=True)
class LayerWork:
    """What one layer skips.

    Attributes:
        choice: How the package has the layer run; None if that was not chosen.
        attention, query_projection, output_projection: Rows; a projection by ordinary operators,
            which is no node of the layer, computes all of them.
        time: Of attention and of the projections that are nodes of the layer; None for a layer
            that was not replaced.
    """

    path: str
    choice: str | None
    attention: Rows
    query_projection: Rows
    output_projection: Rows
    time: LayerTime | None


@dataclass(frozen=True)
class SkippedWork:
    """What the layers of a package skip at one batch size."""

    model: str
    batch: int
    layers: list[LayerWork]

    def to_json(self) -> dict[str, object]:
        return {"model": self.model, "batch": self.batch, "layers": [_json(x) for x in self.layers]}

    def table(self) -> Table:
        """Return the layers and their sums."""
        title = (
            f"{self.model}, batch {self.batch}, one thread: rows computed / rows of the dense"
            " layer; CPU ms of each layer's nodes"
        )
        table = Table(title=title, title_justify="left")
        for heading in ("layer", "choice"):
            table.add_column(heading, no_wrap=True)
        for heading in ("attention", "Q projection", "O projection"):
            table.add_column(heading, justify="right", no_wrap=True)
        for heading in ("moh ms", "every head", "dense", "gain"):
            table.add_column(heading, justify="right", no_wrap=True)
        for layer in [*self.layers, _total(self.layers)]:
            table.add_row(*_cells(layer))
        return table


def skipped_work(
    package: OnnxPackage, inputs: Mapping[str, Array], kernel: KernelUse, *, repeats: int
) -> list[LayerWork]:
    """Count and measure each layer of a package on one thread.

    Raises:
        Unusable: ONNX Runtime refuses a node by itself.
    """
    with TemporaryDirectory(prefix="moh-deploy-") as scratch:
        package = at_these_sizes(package, inputs, Path(scratch))
        nodes, gates = split_layers(package, inputs, kernel)
    return [
        _layer_work(layer, nodes, gates[layer.gates], kernel, repeats)
        for layer in package.manifest.layers
    ]


def at_these_sizes(package: OnnxPackage, inputs: Mapping[str, Array], folder: Path) -> OnnxPackage:
    """Return the package with the one choice a layer that it has at the sizes of these inputs."""
    layers = package.manifest.layers
    if not any(layer.ranges for layer in layers):
        return package
    sizes = check_inputs(package.manifest.inputs, inputs)
    return write_choices(package, at_sizes(layers, sizes), folder / "package")


def _layer_work(
    layer: LayerInfo,
    nodes: Mapping[str, NodeModel],
    gates: Array,
    kernel: KernelUse,
    repeats: int,
) -> LayerWork:
    def rows(name: str | None) -> Rows:
        skips = name is not None and nodes[name].on_kernel
        return Rows(int(np.count_nonzero(gates)) if skips else gates.size, gates.size)

    times = [_measure(nodes[name], kernel, repeats) for name in layer_nodes(layer)]
    return LayerWork(
        layer.path,
        layer.choice,
        rows(layer.node),
        rows(layer.query_projection),
        rows(layer.output_projection),
        _sum(times) if times else None,
    )


def _sum(times: list[LayerTime]) -> LayerTime:
    return LayerTime(
        sum(time.moh for time in times),
        sum(time.every_head for time in times),
        sum(time.dense for time in times),
    )


def _measure(node: NodeModel, kernel: KernelUse, repeats: int) -> LayerTime:
    """Time the three ways in turn."""
    ours, _ = kernel_session(node.content, [node.name], kernel, threads=1)
    dense = plain_session(node.content, threads=1)
    gates = node.feeds[node.gates]
    all_open = np.where(gates == 0, gates.dtype.type(1), gates)
    calls = [
        _call(ours, node.feeds),
        _call(ours, {**node.feeds, node.gates: all_open}),
        _call(dense, node.feeds),
    ]
    runs_ms = interleaved_ms(calls, threads=1, rounds=repeats)
    return LayerTime(*(figure(ms, 1) for ms in runs_ms))


def _call(session: ort.InferenceSession, feeds: Mapping[str, Array]) -> Callable[[], object]:
    values = {name: to_ort(array) for name, array in feeds.items()}
    return lambda: session.run_with_ort_values(None, values)


def _json(work: LayerWork) -> dict[str, object]:
    return {**asdict(work), "gain": None if work.time is None else work.time.gain}


def _total(work: list[LayerWork]) -> LayerWork:
    times = [item.time for item in work if item.time is not None]
    return LayerWork(
        "all",
        None,
        _sum_rows([item.attention for item in work]),
        _sum_rows([item.query_projection for item in work]),
        _sum_rows([item.output_projection for item in work]),
        _sum(times) if times else None,
    )


def _sum_rows(rows: list[Rows]) -> Rows:
    return Rows(sum(row.computed for row in rows), sum(row.dense for row in rows))


def _cells(work: LayerWork) -> list[str]:
    choice = work.choice or "-"
    rows = (work.attention, work.query_projection, work.output_projection)
    if work.time is None:
        return [work.path, choice, *map(str, rows), "not replaced", "", "", ""]
    times = (work.time.moh, work.time.every_head, work.time.dense)
    return [
        work.path,
        choice,
        *map(str, rows),
        *(f"{ms:.3f}" for ms in times),
        f"{work.time.gain:.2f}",
    ]
