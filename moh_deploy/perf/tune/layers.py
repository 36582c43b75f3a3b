"""Time every choice of every layer, each layer by itself, on what the whole model feeds it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import onnx
import onnx_ir as ir

from moh_deploy.graph.choose_layers import choose_layers
from moh_deploy.graph.layer_models import attention_inputs, empty_model, fed_names, layer_model
from moh_deploy.graph.load_model import load_ir
from moh_deploy.ops import op_names
from moh_deploy.package import LayerInfo, OnnxPackage, choices_for, without_ranges
from moh_deploy.perf.cost_model.prediction import platform_of, predict
from moh_deploy.perf.timing import Measure, Ratio, TimeSamples, ratio, weighted_sum
from moh_deploy.runtime.base import Runner, Variant
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.system.npz import Array

_Values = Mapping[str, Array]

# A candidate that does nothing: what it takes is the session's, and in no layer's time.
# It has the same inputs: what a session takes for each of them is to be taken off, too.
_NOTHING = "nothing"


@dataclass(frozen=True)
class LayerTimes:
    """Times of one layer, measured and predicted."""

    # For each set of inputs, choice to times; nothing for a layer without a choice.
    samples: tuple[Mapping[str, TimeSamples], ...]
    # For each set of inputs, choice to what is predicted at its sizes; nothing where they are not
    # known.
    predicted_ms: tuple[Mapping[str, float], ...]


@dataclass(frozen=True)
class LayerBench:
    """Times layers of a package, with kernels where there are some."""

    package: OnnxPackage  # the package
    feeds: Sequence[_Values]  # sets of inputs of the whole model
    variant: Variant  # the runtime, and threads within an operator
    scratch: Path  # a directory to put small models into

    def measure(self, measure: Measure) -> list[LayerTimes]:
        """Return for each layer the times of its choices on each set of inputs.

        Raises:
            BackendError: ONNX Runtime failed.
        """
        # Ranges are taken out first: a node inside an If has no place of its own in the graph, and
        # would not be found by its name.
        model = load_ir(self.package)
        layers = without_ranges(self.package.manifest.layers)
        choose_layers(model, layers)  # Each is measured with one choice at a time.
        # Everything that any layer reads, from one run: layers are timed on real activations, as
        # how many gates are open decides what is fastest.
        read = dict.fromkeys(name for layer in layers for name in fed_names(model, layer))
        inner = [name for name in read if name not in self.feeds[0]]
        runner = open_runner(self.package, self.variant.returning(inner))
        values = [{**feeds, **runner.run(feeds)} for feeds in self.feeds]
        found = runner.describe()
        platform = platform_of(
            self.package.manifest, found.kernels, self.variant.runtime, self.variant.threads
        )
        times: list[LayerTimes] = []
        for layer, nodes in zip(layers, found.layer_nodes, strict=True):
            predicted = [
                predict(sized, nodes, platform)
                for sized in (at_sizes_of(model, layer, arrays) for arrays in values)
            ]
            samples = self._samples(model, layer, values, measure) if choices_for(layer) else []
            known = tuple({} if prediction is None else prediction.ms for prediction in predicted)
            times.append(LayerTimes(tuple(samples), known))
        return times

    def _samples(
        self, model: ir.Model, layer: LayerInfo, values: Sequence[_Values], measure: Measure
    ) -> list[Mapping[str, TimeSamples]]:
        # One session for each choice, for all sets of inputs. The model is changed in place from
        # choice to choice, and put back for the layers after this one.
        names = fed_names(model, layer)
        feeds = [{name: arrays[name] for name in names} for arrays in values]
        runners = {_NOTHING: self._open(empty_model(feeds))}
        for choice in choices_for(layer):
            choose_layers(model, [replace(layer, choice=choice)])
            runners[choice] = self._open(layer_model(model, layer, feeds))
        choose_layers(model, [layer])
        calls = [{name: runner.bound(fed) for name, runner in runners.items()} for fed in feeds]
        return [_without_nothing(measure(layer.path, call)) for call in calls]

    def _open(self, model: onnx.ModelProto) -> Runner:
        # Overwritten by the next one: a session has read its file by the time it is open.
        path = self.scratch / "layer.onnx"
        onnx.save(model, path)
        compute_type = self.package.manifest.compute_type
        return open_runner(path, replace(self.variant, compute_type=compute_type))


def at_sizes_of(model: ir.Model, layer: LayerInfo, values: _Values) -> LayerInfo:
    """Return the layer with the sizes and the share of active heads of one run.

    What is not among the values, as it does not depend on the model's inputs, stays as it was.
    """
    # gates [B, S, H]; K [B, T, Hkv*D] or [B, Hkv, T, D].
    names = attention_inputs(model, layer)
    gates, keys = values.get(names.get("gates", "")), values.get(names.get("K", ""))
    if gates is not None:
        batch, seq_len, _ = gates.shape
        # A head is off for a token where its gate is exactly 0.
        share = np.count_nonzero(gates) / max(1, gates.size)
        layer = replace(layer, batch=batch, seq_len=seq_len, active_share=share)
    # With windows the attention reads pooled keys besides, which K alone does not tell.
    if keys is not None and layer.op != op_names.AGGREGATED_ATTENTION:
        layer = replace(layer, kv_len=keys.shape[1 if keys.ndim == 3 else 2])
    return layer


def _without_nothing(samples: Mapping[str, TimeSamples]) -> dict[str, TimeSamples]:
    """Take off what a session costs that does nothing."""
    nothing = median(samples[_NOTHING])
    return {
        # Noise must not make a time 0 or negative: ratios of it are taken.
        name: tuple(max(value - nothing, value / 100) for value in ms)
        for name, ms in samples.items()
        if name != _NOTHING
    }


# Time the whole model: as chosen, with one choice a layer, and with every layer dense.

WHOLE_MODEL = "whole model"

DENSE, CHOSEN, ONE_CHOICE = "dense", "chosen", "one_choice"

ModelTimes = Sequence[Mapping[str, TimeSamples]]
"""For each set of inputs, candidate to times."""


def time_model(
    packages: Mapping[str, OnnxPackage],
    feeds: Sequence[Mapping[str, Array]],
    *,
    measure: Measure,
    variant: Variant,
) -> list[dict[str, TimeSamples]]:
    """Return for each set of inputs the times of the packages."""
    runners = {name: open_runner(package, variant) for name, package in packages.items()}
    return [
        # All candidates are open at once and take turns, so that what disturbs the machine disturbs
        # all.
        measure(WHOLE_MODEL, {name: runner.bound(fed) for name, runner in runners.items()})
        for fed in feeds
    ]


def chosen_over_dense(times: ModelTimes, weights: Sequence[float]) -> Ratio:
    """Return the chosen package's time over the dense one's, all sets of inputs together."""
    # The total time of a mix of inputs, each as often as it occurs: long ones decide more.
    chosen, dense = (
        weighted_sum([time[which] for time in times], weights) for which in (CHOSEN, DENSE)
    )
    return ratio(chosen, dense)


def chosen_over(times: Mapping[str, TimeSamples]) -> dict[str, Ratio]:
    """Return each other candidate on one set of inputs to the chosen one's time over its."""
    return {name: ratio(times[CHOSEN], ms) for name, ms in times.items() if name != CHOSEN}


def slower_than_dense(times: ModelTimes, which: str = CHOSEN) -> list[int]:
    """Return the numbers of the sets of inputs on which a candidate is slower beyond noise."""
    return [i for i, time in enumerate(times) if ratio(time[which], time[DENSE]).is_slower]


def ranges_pay(times: ModelTimes) -> bool:
    """Tell whether one choice a layer is slower: than choices by size, or than dense, anywhere."""
    # Ranges cost Ifs, and memory for weights that are packed twice: they have to pay somewhere.
    faster = [time for time in times if ratio(time[CHOSEN], time[ONE_CHOICE]).is_faster]
    return bool(faster) or bool(slower_than_dense(times, ONE_CHOICE))
