"""The float32 form of a package: the same graph, in which nothing is rounded to fewer bits."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import onnx_ir as ir

from moh_deploy.errors import ConfigError
from moh_deploy.graph.choose_layers import choose_layers
from moh_deploy.graph.forced_gates import GateTypes
from moh_deploy.graph.load_model import load_ir
from moh_deploy.graph.precision_casts import IR_TYPES, Raised, lower_precision
from moh_deploy.graph.precision_policy import LowType, PrecisionPlan
from moh_deploy.graph.sequences import raise_to_float32
from moh_deploy.package import OnnxPackage
from moh_deploy.package.writer import save_model

# Lower a raised graph as it was before, except some nodes that stay in float32.

EXACT = frozenset(
    (
        *("Abs", "Clip", "Concat", "DepthToSpace", "Expand", "Flatten", "Gather"),
        *("GatherElements", "GatherND", "Identity", "Max", "Min", "Neg", "Pad", "Relu", "Reshape"),
        *("Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where"),
    )
)
"""Operators that round nothing: in float32 they keep what was made in float32, and cost little."""


def lower_again(
    raised: ir.Model, low: LowType, computed: frozenset[str], keep: Mapping[str, str]
) -> ir.Model:
    """Return a lowered copy of a model that `raise_precision` has raised.

    Args:
        raised: The model, which stays as it is; the copy shares its weights.
        low: What it was lowered to.
        computed: First outputs of the nodes that computed in that: `Raised.low`.
        keep: First outputs of those of them that are to compute in float32 now, with the reason.
            What reads their results and rounds nothing goes with them.
    """
    # In execution order, so that whatever follows a node is met after it.
    model = raised.clone()
    # A clone shares its values' types with the original, which lowering changes in place.
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value.dtype is not None:
                value.type = ir.TensorType(value.dtype)
    float32: dict[ir.Node, str] = {}
    kept: set[ir.Node | None] = set()
    for node in model.graph:
        name = node.outputs[0].name or ""
        follows = any(value is not None and value.producer() in kept for value in node.inputs)
        # A reader that rounds nothing would round to the low dtype only to cast back: it stays,
        # too.
        if name in keep or (node.op_type in EXACT and follows):
            kept.add(node)
            float32[node] = keep.get(name, "it rounds nothing, and reads what is in float32")
        # What the first lowering had left in float32.
        elif name not in computed:
            float32[node] = "it was in float32 before"
    lower_precision(model, PrecisionPlan(low, float32))
    return model


LOW = ("float16", "bfloat16")


@dataclass(frozen=True)
class Float32Form:
    """A package of lower precision as it would be in float32."""

    # Stored in a scratch directory, with the manifest and vectors of the original one.
    package: OnnxPackage
    model: ir.Model  # its graph, without switches by size
    raised: Raised  # what was in lower precision
    low: LowType  # that precision

    @property
    def rounding(self) -> frozenset[str]:
        """First outputs of the nodes that round in that precision."""
        rounding = set[str]()
        for node in self.model.graph:
            floats = [v for v in node.inputs if v is not None and v.dtype == ir.DataType.FLOAT]
            # An operator that only moves numbers rounds if it reads an input, a weight, or a result
            # in float32, which is cast in front of it.
            rounds = node.op_type not in EXACT or not all(map(self._is_low, floats))
            if node.outputs[0].name in self.raised.low and node.op_type != "Cast" and rounds:
                rounding.add(str(node.outputs[0].name))
        return frozenset(rounding)

    def lowered(self, keep: Mapping[str, str]) -> ir.Model:
        """Return the model in that precision again, without switches by size.

        Args:
            keep: First outputs of the nodes that stay in float32, to the reason.
        """
        return lower_again(self.model, self.low, self.raised.low, keep)

    def gate_types(self, model: ir.Model) -> GateTypes:
        """Return the dtypes of the layers' gates in a model that `lowered` made."""
        # Keeping nodes in float32 may change them.
        types = {value.name: value.dtype for node in model.graph for value in node.outputs}
        known = {name: types[name] or ir.DataType.UNDEFINED for name in self.package.gate_names}
        return {name: np.dtype(dtype.numpy()) for name, dtype in known.items()}

    def _is_low(self, value: ir.Value) -> bool:
        """Tell whether a value of the float32 form is one of the lower precision, exactly."""
        maker = value.producer()
        if maker is None or maker.outputs[0].name not in self.raised.low:
            return False
        source = maker.inputs[0] if maker.op_type == "Cast" else None
        return source is None or source.dtype in (ir.DataType.FLOAT, IR_TYPES[self.low])

    @property
    def weights(self) -> str:
        """The origin of the float32 weights, in words."""
        if self.raised.given and not self.raised.foreign:
            return "the weights of the reference"
        if self.raised.given:
            count = len(self.raised.foreign)
            return f"the weights of the reference, and {count} in {self.low} that are not in it"
        none = ": none of the reference rounds to them" if self.raised.foreign else ""
        return f"the weights in {self.low}, whose rounding stays{none}"


def float32_form(package: OnnxPackage, reference: OnnxPackage | None, scratch: Path) -> Float32Form:
    """Make it, with weights from the reference where they round to those in the package.

    Args:
        package: In float16 or bfloat16.
        reference: The float32 package that it was made from, or None.
        scratch: An empty directory to write it to.
    """
    low = cast(LowType, package.manifest.precision)
    model = load_ir(package)
    # Rounded weights become float32, and those of the reference take the place of what rounds to
    # them.
    weights = None
    if reference is not None:
        stored = load_ir(reference).graph.initializers.items()
        weights = {
            name: value.const_value for name, value in stored if value.const_value is not None
        }
    raised = raise_to_float32(model, low, weights)
    # A clone is stored, since storing puts switches by size into the graph.
    return Float32Form(store(model.clone(), package, scratch), model, raised, low)


def store(model: ir.Model, package: OnnxPackage, root: Path) -> OnnxPackage:
    """Write a variant of a package's model, its layers run as the package says, into a directory.

    Returns:
        A package to open sessions of. It has no files but the model.
    """
    choose_layers(model, package.manifest.layers)
    save_model(model, package, root)
    return replace(package, root=root)


def check_reference(package: OnnxPackage, reference: OnnxPackage) -> None:
    """Refuse a package that cannot be the one that another was made from.

    Raises:
        ConfigError: It is not in float32, or has other layers.
    """
    if reference.manifest.precision != "float32":
        raise ConfigError(
            f"the reference {reference.root} is in {reference.manifest.precision}, expected a"
            " package in float32."
        )
    ours, theirs = (
        ", ".join(f"'{layer.path}'" for layer in found.manifest.layers) or "none"
        for found in (package, reference)
    )
    if ours != theirs:
        raise ConfigError(
            f"the reference {reference.root} has the MoH layers {theirs},"
            f" {package.root} has {ours}: it is another model."
        )
