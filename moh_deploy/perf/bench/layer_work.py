"""Count what layers of a package skip on given inputs, and predict up to where that pays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from moh_deploy.graph.choose_layers import choose_layers
from moh_deploy.graph.layer_models import attention_inputs
from moh_deploy.graph.layer_nodes import LayerNodes
from moh_deploy.graph.load_model import load_ir
from moh_deploy.package import Choice, LayerInfo, OnnxPackage, current_choice, without_ranges
from moh_deploy.perf.bench.candidate import fed_by
from moh_deploy.perf.cost_model.prediction import predict
from moh_deploy.perf.tune.layers import at_sizes_of
from moh_deploy.runtime.base import Runner, Variant
from moh_deploy.runtime.input_check import check_inputs
from moh_deploy.runtime.layer_runs import LayerRun
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.validate.reference.input_sets import InputSet


@dataclass(frozen=True)
class LayerWork:
    """The rows that one layer computes in one run of the model, of those that it could.

    Attributes:
        path: The layer.
        choice: How it is run at these sizes; None if it was not replaced.
        runs_as: `kernel`, `function` or `dense`; None if it was not replaced.
        rows_computed: Rows of attention that are computed, one for each head of each token.
        rows_dense: Rows of the layer that computes every head.
        active_share: Share of the gates that are open.
        break_even: Each choice but `dense` to the share of open gates up to which it is predicted
            to be faster than the one before it, None where it never is; empty where nothing is
            predicted.
        predicted_fastest: The choice that is predicted to be the fastest on these inputs.
    """

    path: str
    choice: Choice | None
    runs_as: str | None
    rows_computed: int
    rows_dense: int
    active_share: float
    break_even: Mapping[str, float | None]
    predicted_fastest: Choice | None


def layer_work(
    package: OnnxPackage, sets: Sequence[InputSet], variant: Variant
) -> list[tuple[LayerWork, ...]]:
    """Run a package once on each set of inputs and count what its layers skip.

    Args:
        variant: The way in which the package is opened, that is measured or judged.

    Raises:
        BackendError: The runtime failed.
        ConfigError: The package does not take these inputs.
    """
    model = load_ir(package)
    # Nodes within branches that depend on sizes are not found by name otherwise.
    choose_layers(model, without_ranges(package.manifest.layers))
    with open_runner(package, variant.returning(_read_by_layers(package, model))) as runner:
        return [_works(package, model, runner, input_set, variant.threads) for input_set in sets]


def _read_by_layers(package: OnnxPackage, model: ir.Model) -> list[str]:
    given = {info.name for info in package.manifest.inputs}
    names: dict[str, None] = {}
    for layer in package.manifest.layers:
        read = attention_inputs(model, layer)
        # The recorded gates are counted; the attention's own gates and K tell its sizes and its
        # share.
        wanted = [layer.gates, *(read[name] for name in ("gates", "K") if name in read)]
        names |= dict.fromkeys(name for name in wanted if name not in given)
    return list(names)


def _works(
    package: OnnxPackage, model: ir.Model, runner: Runner, input_set: InputSet, threads: int | None
) -> tuple[LayerWork, ...]:
    # Another package may have made these inputs, and call them and its dimensions otherwise.
    inputs = fed_by(input_set, package.manifest.inputs, str(package.root))
    sizes = check_inputs(package.manifest.inputs, inputs)
    values = {**inputs, **runner.run(inputs)}
    found = runner.describe()
    layers = zip(package.manifest.layers, found.layer_nodes, found.layer_runs, strict=True)

    def work(layer: LayerInfo, nodes: LayerNodes, run: LayerRun) -> LayerWork:
        sized = at_sizes_of(model, layer, values)
        predicted = predict(
            sized, nodes, instruction_set=found.kernels.instruction_set, threads=threads or 1
        )
        # Rows of attention: one head of one token each.
        gates = values[layer.gates]
        rows, active = gates.size, int(np.count_nonzero(gates))
        choice = current_choice(layer, sizes)
        # A function body computes all heads and multiplies with the gates: closed ones save
        # nothing.
        skips = run.runs_as == "kernel" and choice != "dense"
        return LayerWork(
            path=layer.path,
            choice=choice,
            runs_as="dense" if choice == "dense" else run.runs_as,
            rows_computed=active if skips else rows,
            rows_dense=rows,
            active_share=active / max(1, rows),
            break_even={} if predicted is None else predicted.break_even,
            predicted_fastest=None if predicted is None else predicted.best,
        )

    return tuple(work(*layer) for layer in layers)


@dataclass(frozen=True)
class PackageWork:
    """The work that the layers of a package skip on one set of inputs.

    Attributes:
        contestant: The package.
        inputs: `recorded`, `random`, or the file.
        sizes: Dimension sizes.
        layers: One each.
    """

    contestant: str
    inputs: str
    sizes: dict[str, int]
    layers: tuple[LayerWork, ...]
