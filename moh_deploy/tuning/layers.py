"""Time every choice of every layer, each layer by itself, on what the whole model feeds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import onnx_ir as ir

from moh_deploy.backends.onnxruntime import OrtRunner, open_session
from moh_deploy.backends.runner import Kernels
from moh_deploy.npz import Array
from moh_deploy.package import LayerInfo, OnnxPackage, choices_for
from moh_deploy.passes import choose_layers
from moh_deploy.tuning.layer_models import fed_names, layer_model
from moh_deploy.tuning.timing import Measure, Samples

LayerSamples = dict[str, Samples]
"""Choice to times."""


@dataclass(frozen=True)
class LayerBench:
    """Times layers of a package.

    Attributes:
        package: The package.
        feeds: Sets of inputs of the whole model.
        kernels: What runs MoH nodes, see `open_session`.
        threads: Threads within an operator; None lets ONNX Runtime choose.
        scratch: An empty directory to put small models into.
    """

    package: OnnxPackage
    feeds: Sequence[Mapping[str, Array]]
    kernels: Kernels
    threads: int | None
    scratch: Path

    def measure(self, measure: Measure) -> list[list[LayerSamples]]:
        """Return for each layer and each set of inputs the times of each choice.

        Raises:
            BackendError: ONNX Runtime failed.
        """
        model = ir.load(self.package.model_path)
        layers = self.package.manifest.layers
        values = self._values(model, layers)
        return [self._layer(model, layer, values, measure) for layer in layers]

    def _values(self, model: ir.Model, layers: Sequence[LayerInfo]) -> list[Mapping[str, Array]]:
        """Run the whole model once on each set of inputs, and keep what the layers read of it."""
        given = set(self.feeds[0])
        read = [name for layer in layers for name in fed_names(model, layer)]
        inner = [name for name in dict.fromkeys(read) if name not in given]
        runner = open_session(
            self.package, kernels=self.kernels, threads=self.threads, extra_outputs=inner
        )
        return [{**feeds, **runner.run(feeds)} for feeds in self.feeds]

    def _layer(
        self,
        model: ir.Model,
        layer: LayerInfo,
        values: Sequence[Mapping[str, Array]],
        measure: Measure,
    ) -> list[LayerSamples]:
        names = fed_names(model, layer)
        feeds = [{name: arrays[name] for name in names} for arrays in values]
        runners = {
            choice: self._runner(model, replace(layer, choice=choice), feeds)
            for choice in choices_for(layer)
        }
        choose_layers(model, [layer])
        if not runners:
            return []
        return [
            measure(layer.path, {choice: one.bound(fed) for choice, one in runners.items()})
            for fed in feeds
        ]

    def _runner(
        self, model: ir.Model, layer: LayerInfo, feeds: Sequence[Mapping[str, Array]]
    ) -> OrtRunner:
        choose_layers(model, [layer])
        path = self.scratch / "layer.onnx"
        onnx.save(layer_model(model, layer, feeds), path)
        return open_session(
            path,
            kernels=self.kernels,
            threads=self.threads,
            compute_type=self.package.manifest.compute_type,
        )
