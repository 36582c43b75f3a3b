"""What a fault truly does: each layer's values in float64, beside those of the right model.

The right model's gates are fed to every layer, so that no flip hides what the fault does by itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from moh_deploy.graph.forced_gates import computed_gates, force_gates, forced_gates
from moh_deploy.package import OnnxPackage
from moh_deploy.package.graph_nodes import router_nodes
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.kernel_use import Kernels
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.runtime.variants import gates_fed
from moh_deploy.system.npz import Array
from tests.validate.mutations.packages import Precision
from tests.validate.mutations.wide import WideRun

LEAST_FLOOR: Mapping[Precision, float] = {
    "float32": 2.0**-25,
    "float16": 2.0**-12,
    "bfloat16": 2.0**-9,
    "bfloat16 products": 2.0**-25,
}
"""A quarter of a step of the dtype: the least floor, where a value happens to be exact."""

Values = dict[str, Array]
"""`attention/1`, `gates/1`, `scores/1` of layer 1, and `output/logits`."""

Runs = Sequence[Values]
"""One entry for each recorded run."""


@dataclass(frozen=True)
class Effect:
    """How far one value is off.

    Attributes:
        value: As in `Values`.
        size: RMS of the difference over RMS of the right value; the largest of all recorded runs.
        floor: The same of the right package, as rounding makes it.
    """

    value: str
    size: float
    floor: float

    @property
    def ratio(self) -> float:
        return self.size / self.floor


def wide_values(model: onnx.ModelProto, package: OnnxPackage) -> Runs:
    """Run a float32 model in float64 on the package's recorded inputs, with the recorded gates."""
    names = _names(model, package)
    forced = onnx.ModelProto.FromString(model.SerializeToString())
    layers = package.manifest.layers
    force_gates(forced.graph, {layer.gates: np.dtype(np.float64) for layer in layers})
    run = WideRun(forced, dict.fromkeys(names.values()))
    return [
        _values(names, run.run(_fed(package, vector.inputs, vector.gates)))
        for vector in package.vectors
    ]


def values_as_run(package: OnnxPackage, kernels: Kernels = "off") -> Runs:
    """Run a package without optimisations, as function bodies or not, with the recorded gates."""
    model = onnx.load(package.model_path)
    names = _names(model, package)
    plain = open_runner(package, Variant(kernels="off", extra_outputs=package.gate_names))
    first = plain.run(package.vectors[0].inputs)
    dtypes = {layer.gates: first[layer.gates].dtype for layer in package.manifest.layers}
    inner = [name for key, name in names.items() if not key.startswith(("gates", "output"))]
    variant = gates_fed(Variant(kernels=kernels, optimize=False), dtypes, inner)
    runner = open_runner(package, variant)
    found = []
    for vector in package.vectors:
        gates = [
            array.astype(dtypes[layer.gates])
            for array, layer in zip(vector.gates, package.manifest.layers, strict=True)
        ]
        found.append(_values(names, runner.run(_fed(package, vector.inputs, gates))))
    return found


def _names(model: onnx.ModelProto, package: OnnxPackage) -> dict[str, str]:
    """Return the names of the values in one model: a fault may have renamed them."""
    layers = package.manifest.layers
    nodes = {node.name: node for node in model.graph.node if node.name}
    names = {}
    routers = router_nodes(model.graph, layers)
    for index, (layer, router) in enumerate(zip(layers, routers, strict=True)):
        if layer.node is not None:
            names[f"attention/{index}"] = nodes[layer.node].output[0]
        names[f"gates/{index}"] = computed_gates(layer.gates)
        if router is not None and nodes[router].input[0]:
            names[f"logits/{index}"] = nodes[router].input[0]
    for output in package.manifest.outputs:
        names[f"output/{output.name}"] = output.name
    return names


def _fed(package: OnnxPackage, inputs: Mapping[str, Array], gates: Sequence[Array]) -> Values:
    layers = package.manifest.layers
    fed = {forced_gates(layer.gates): item for layer, item in zip(layers, gates, strict=True)}
    return {**inputs, **fed}


def _values(names: Mapping[str, str], got: Mapping[str, Array]) -> Values:
    values = {}
    for key, name in names.items():
        array = np.asarray(got[name]).astype(np.float64)
        kind, _, index = key.partition("/")
        if kind == "logits":
            values[f"scores/{index}"] = _softmax(array)
        else:
            values[key] = array
    return values


def _softmax(logits: Array) -> Array:
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def differences(right: Runs, other: Runs) -> dict[str, float]:
    """Return how far each value is off, the largest of all runs."""
    found: dict[str, float] = {}
    for expected, got in zip(right, other, strict=True):
        for name, value in expected.items():
            if name not in got or got[name].shape != value.shape:
                size = np.inf
            elif name.startswith("gates/"):
                size = _relative(value, _without_explained_flips(name, expected, got))
            else:
                size = _relative(value, got[name])
            found[name] = max(found.get(name, 0.0), size)
    return found


def effects(sizes: Mapping[str, float], floors: Mapping[str, float], least: float) -> list[Effect]:
    """Return all effects, the largest ratio first."""
    found = [Effect(name, size, max(floors[name], least)) for name, size in sizes.items()]
    return sorted(found, key=lambda item: -item.ratio)


def _relative(right: Array, got: Array) -> float:
    finite = np.isfinite(right)
    if not np.array_equal(finite, np.isfinite(got)):
        return float("inf")
    difference, scale = (got - right)[finite], right[finite]
    if not difference.size or not difference.any():
        return 0.0
    return float(np.sqrt(np.mean(difference**2) / max(np.mean(scale**2), 1e-300)))


def _without_explained_flips(name: str, right: Values, other: Values) -> Array:
    """Return the gates of another run, those of a token as they are in the right one where it takes
    as many other heads as its scores, which are off, explain: the scores tell of these."""
    gates, got = right[name], other[name]
    scores, moved = (values.get(name.replace("gates", "scores")) for values in (right, other))
    if scores is None or moved is None or scores.shape != moved.shape:
        return got
    shared = gates.shape[-1] - scores.shape[-1]
    if scores.shape[:-1] != gates.shape[:-1] or shared < 0:
        return got
    chosen, choice = gates != 0, got != 0
    flipped = (chosen != choice).any(-1) & (chosen.sum(-1) == choice.sum(-1))
    flipped &= (chosen[..., :shared] == choice[..., :shared]).all(-1)
    last_in = np.where(chosen[..., shared:], scores, np.inf).min(-1)
    first_out = np.where(chosen[..., shared:], -np.inf, scores).max(-1)
    off = np.abs(moved - scores).max(-1)
    explained = flipped & (last_in - first_out <= 2 * off + 1e-12)
    return np.where(explained[..., None], gates, got)
