"""A package as it is bisected: with the reference gates fed to it, and its inner values to see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import onnx

from moh_deploy.graph.forced_gates import GateTypes, computed_gates, force_gates, forced_gates
from moh_deploy.package import OnnxPackage, VectorSet
from moh_deploy.runtime.onnxruntime.session import OrtRunner, open_session
from moh_deploy.runtime.onnxruntime.variants import OrtVariants, open_forced
from moh_deploy.runtime.runner import Kernels
from moh_deploy.system.npz import Array
from moh_deploy.validate.bisection.places import ModelGraph


@dataclass(frozen=True)
class ForcedModel:
    """A package that is run with its gates fed to it.

    Attributes:
        package: Its model and layers.
        gates: Name of each layer's gates to the dtype that they are fed in; empty where they
            cannot be fed.
        kernels: What runs MoH nodes.
        optimize: ONNX Runtime may rewrite the graph.
        rounded: Every result in float16 is rounded, see `open_session`.
    """

    package: OnnxPackage
    gates: GateTypes
    kernels: Kernels = "off"
    optimize: bool = False
    rounded: bool = True

    @classmethod
    def of(cls, package: OnnxPackage, vectors: Sequence[VectorSet]) -> ForcedModel:
        """Find out what the gates are fed as, by a run."""
        layers = package.manifest.layers
        known = vectors and all(len(one.gates) == len(layers) for one in vectors)
        if not layers or not known or OrtVariants(package).why_not_forced() is not None:
            return cls(package, {})
        names = package.gate_names
        runner = open_session(package, kernels="off", optimize=False, extra_outputs=names)
        results = runner.run(vectors[0].inputs)
        return cls(package, {name: results[name].dtype for name in names})

    def run_as(self, kernels: Kernels, *, optimize: bool) -> ForcedModel:
        """Return it as a runtime runs it that may round less than the graph says."""
        return replace(self, kernels=kernels, optimize=optimize, rounded=False)

    def open(self, names: Sequence[str] = ()) -> OrtRunner:
        """Open a session that returns these inner values, and what the routers compute."""
        return open_forced(
            self.package,
            self.gates,
            extra_outputs=names,
            kernels=self.kernels,
            optimize=self.optimize,
            round_results=self.rounded,
        )

    def open_changed(
        self, change: Callable[[onnx.GraphProto], object], names: Sequence[str] = ()
    ) -> OrtRunner:
        """Open a session of a changed graph.

        Args:
            change: Changes it once its gates are inputs.
            names: Inner values to return besides what the routers compute.
        """

        def both(graph: onnx.GraphProto) -> None:
            force_gates(graph, self.gates)
            change(graph)

        return open_session(
            self.package,
            kernels=self.kernels,
            optimize=self.optimize,
            extra_outputs=[*map(computed_gates, self.gates), *names],
            change=both,
            round_results=self.rounded,
        )

    def value_types(self) -> dict[str, int]:
        """Return the dtypes of values as they are numbered in ONNX, of those that are known."""
        graph = onnx.shape_inference.infer_shapes(self._model()).graph
        known = (*graph.value_info, *graph.output)
        types = {one.name: one.type.tensor_type.elem_type for one in known}
        return {name: dtype for name, dtype in types.items() if dtype}

    def inputs(self, vectors: VectorSet) -> dict[str, Array]:
        """Return what `open` takes: the model's inputs, and the gates."""
        if not self.gates:
            return dict(vectors.inputs)
        pairs = zip(self.package.manifest.layers, vectors.gates, strict=True)
        fed = {
            forced_gates(layer.gates): gates.astype(self.gates[layer.gates])
            for layer, gates in pairs
        }
        return {**vectors.inputs, **fed}

    def graph(self) -> onnx.GraphProto:
        """Return the graph as it is run, without its weights if they are stored outside."""
        graph = self._model().graph
        if self.gates:
            force_gates(graph, self.gates)
        return graph

    def functions(self) -> Sequence[onnx.FunctionProto]:
        """Return the function bodies."""
        return list(self._model().functions)

    def _model(self) -> onnx.ModelProto:
        return onnx.load(self.package.model_path, load_external_data=False)


def graph_of(model: ForcedModel) -> ModelGraph:
    """Return the graph of a package as it is run, whose nodes are placed as it is written."""
    layers = model.package.manifest.layers
    written = ModelGraph(replace(model, gates={}).graph(), layers)
    return ModelGraph(model.graph(), layers, written)
