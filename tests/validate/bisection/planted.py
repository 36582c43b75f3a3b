"""Plant a fault in an exported package: its digests are right, its numbers are not."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from moh_deploy.package import OnnxPackage, PackageWriter
from moh_deploy.system.npz import Array
from tests.true_manifest import finish_true

Change = Callable[[onnx.GraphProto], str]
"""Makes the graph wrong in one node, and returns the node's name."""


def plant(right: Path, output: Path, change: Change) -> str:
    """Write a package again with a fault in it; return the name of the node that is wrong."""
    package = OnnxPackage.open(right)
    content = onnx.load(package.model_path)
    name = change(content.graph)
    with PackageWriter(output) as writer:
        onnx.save(content, writer.path("model.onnx"))
        finish_true(writer, package.manifest, package.vectors)
    return name


def named(graph: onnx.GraphProto, name: str) -> onnx.NodeProto:
    return next(node for node in graph.node if node.name == name)


@dataclass(frozen=True)
class Stale:
    """A weight of a node is as it was before the last steps of training."""

    node: str
    place: int
    share: float

    def __call__(self, graph: onnx.GraphProto) -> str:
        def older(weight: Array) -> Array:
            moved = np.random.default_rng(0).standard_normal(weight.shape)
            return weight * (1 + self.share * moved)

        return change_weight(graph, self.node, self.place, older)


def change_weight(
    graph: onnx.GraphProto, node: str, place: int, change: Callable[[Array], Array]
) -> str:
    """Give a node a changed copy of a weight that it reads."""
    reader = named(graph, node)
    weights = {item.name: item for item in graph.initializer}
    weight = numpy_helper.to_array(weights[reader.input[place]])
    changed = numpy_helper.from_array(change(weight).astype(weight.dtype), f"{node}.changed")
    graph.initializer.append(changed)
    reader.input[place] = changed.name
    return node


@dataclass(frozen=True)
class Attribute:
    """An attribute of a node is changed."""

    node: str
    name: str
    change: Callable[[float], float]

    def __call__(self, graph: onnx.GraphProto) -> str:
        node = named(graph, self.node)
        (one,) = (item for item in node.attribute if item.name == self.name)
        value = self.change(helper.get_attribute_value(one))
        one.CopyFrom(helper.make_attribute(self.name, value))
        return self.node


@dataclass(frozen=True)
class Input:
    """A node reads another value."""

    node: str
    place: int
    value: str

    def __call__(self, graph: onnx.GraphProto) -> str:
        named(graph, self.node).input[self.place] = self.value
        return self.node


@dataclass(frozen=True)
class SwappedInputs:
    """A node reads two values in the wrong order."""

    node: str
    first: int
    second: int

    def __call__(self, graph: onnx.GraphProto) -> str:
        read = named(graph, self.node).input
        read[self.first], read[self.second] = read[self.second], read[self.first]
        return self.node


@dataclass(frozen=True)
class SwappedHeads:
    """The weights of two heads are in each other's place, along the last axis."""

    node: str
    place: int
    head_dim: int

    def __call__(self, graph: onnx.GraphProto) -> str:
        def swapped(weight: Array) -> Array:
            order = np.arange(weight.shape[-1])
            one, two = slice(0, self.head_dim), slice(self.head_dim, 2 * self.head_dim)
            order[one], order[two] = order[two].copy(), order[one].copy()
            return weight[..., order]

        return change_weight(graph, self.node, self.place, swapped)


@dataclass(frozen=True)
class Scaled:
    """What a node makes is multiplied once more, by a node behind it."""

    node: str
    factor: float

    def __call__(self, graph: onnx.GraphProto) -> str:
        value, name = named(graph, self.node).output[0], f"{self.node}.again"
        for node in graph.node:
            for place, read in enumerate(node.input):
                if read == value:
                    node.input[place] = name
        factor = numpy_helper.from_array(np.float32(self.factor), f"{name}.factor")
        graph.initializer.append(factor)
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
        behind = 1 + [node.name for node in nodes].index(self.node)
        nodes.insert(behind, helper.make_node("Mul", [value, factor.name], [name], name=name))
        del graph.node[:]
        graph.node.extend(nodes)
        return name
