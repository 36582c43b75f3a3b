"""A package as it is bisected: with the reference gates fed to it, and its inner values to see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx

from moh_deploy.graph.forced_gates import GateTypes, force_gates, forced_gates
from moh_deploy.package import OnnxPackage, VectorSet
from moh_deploy.runtime.base import FUNCTION_BODIES, GraphEdit, Runner, Variant
from moh_deploy.runtime.kernel_use import Kernels
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.runtime.variants import PackageVariants, gates_fed
from moh_deploy.system.npz import Array
from moh_deploy.validate.bisection.places import ModelGraph

# Runtimes may compute float16 in float32 in between, and hide where rounding does harm.
_AS_WRITTEN = replace(FUNCTION_BODIES, round_results=True)


@dataclass(frozen=True)
class ForcedModel:
    """A package that is run with its gates fed to it.

    Attributes:
        package: Its model and layers.
        gates: Name of each layer's gates to the dtype that they are fed in; empty where they
            cannot be fed.
        variant: How it is opened otherwise: as it is written, unless asked for otherwise, with
            every result in float16 rounded.
    """

    package: OnnxPackage
    gates: GateTypes
    variant: Variant = _AS_WRITTEN

    @classmethod
    def of(cls, package: OnnxPackage, vectors: Sequence[VectorSet]) -> ForcedModel:
        """Find out what the gates are fed as, by a run."""
        layers = package.manifest.layers
        # A run whose gates were not recorded has none to feed.
        known = vectors and all(len(vector_set.gates) == len(layers) for vector_set in vectors)
        if not layers or not known or PackageVariants(package).why_not_forced() is not None:
            return cls(package, {})
        names = package.gate_names
        runner = open_runner(package, FUNCTION_BODIES.returning(names))
        # The dtype of an inner value is not always declared, so it is read from a run.
        results = runner.run(vectors[0].inputs)
        return cls(package, {name: results[name].dtype for name in names})

    def run_as(self, kernels: Kernels, *, optimize: bool) -> ForcedModel:
        """Return it as a runtime runs it that may round less than the graph says."""
        return replace(self, variant=Variant(kernels=kernels, optimize=optimize))

    def open(self, names: Sequence[str] = (), edits: Sequence[GraphEdit] = ()) -> Runner:
        """Open it so that it returns these inner values, and what the routers compute.

        Args:
            names: The inner values.
            edits: Changes of the graph, once its gates are inputs.
        """
        fed = gates_fed(self.variant, self.gates, names)
        return open_runner(self.package, fed.edited(*edits))

    def value_types(self) -> dict[str, int]:
        """Return the dtypes of values as they are numbered in ONNX, of those that are known."""
        # Shapes are inferred from the graph alone; weights outside of it stay on disk.
        graph = onnx.shape_inference.infer_shapes(self._model()).graph
        known = (*graph.value_info, *graph.output)
        types = {item.name: item.type.tensor_type.elem_type for item in known}
        return {name: dtype for name, dtype in types.items() if dtype}

    def value_dims(self) -> dict[str, tuple[int | str, ...]]:
        """Return how the axes of values are called, of those that the model declares."""
        graph = self._model().graph
        return {
            output.name: tuple(
                axis.dim_param or axis.dim_value for axis in output.type.tensor_type.shape.dim
            )
            for output in (*graph.value_info, *graph.output)
            if output.type.tensor_type.HasField("shape")
        }

    def inputs(self, vectors: VectorSet) -> dict[str, Array]:
        """Return the inputs for a runner of `open`: the model's, and the gates."""
        if not self.gates:
            return dict(vectors.inputs)
        # Recorded gates are in the original's dtype, and the graph's may be lower.
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
    # With gates fed, routers lead nowhere, so modules are told by the graph as it is written.
    written = ModelGraph(replace(model, gates={}).graph(), layers)
    return ModelGraph(model.graph(), layers, written)
