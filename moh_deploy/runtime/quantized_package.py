"""A package whose products are in int8: its model, and what stays in float32."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from moh_deploy.errors import ConfigError
from moh_deploy.graph.choose_layers import choose_layers, ops_of
from moh_deploy.graph.int8_policy import PRODUCTS, Int8Plan, plan_int8
from moh_deploy.graph.load_model import load_ir
from moh_deploy.graph.plain_projections import make_projections_plain
from moh_deploy.graph.store_rearranged import store_rearranged
from moh_deploy.graph.switch_by_size import without_switches
from moh_deploy.package import LayerInfo, Manifest, OnnxPackage
from moh_deploy.runtime.onnxruntime.quantizer import quantize_products

INT8 = "int8"
"""What a user calls it, and a manifest."""


@dataclass(frozen=True)
class Quantized:
    """A package's model with products in int8.

    Attributes:
        model: Its weights are in memory.
        layers: Those of the package; projections are products, so none runs `projected`.
        plan: Which products are in int8, and why the others are not.
        ops: The custom operators that are left, with their versions.
    """

    model: ir.Model
    layers: tuple[LayerInfo, ...]
    plan: Int8Plan
    ops: Mapping[str, int]

    def manifest(self, package: OnnxPackage) -> Manifest:
        """Return the manifest: what was measured in float32 says nothing of it."""
        return replace(
            package.manifest,
            precision=INT8,
            layers=self.layers,
            ops=dict(self.ops),
            proof=None,
            rounding=None,
            tuning=None,
            runtime=None,
        )


def quantized(package: OnnxPackage, *, float32: Collection[str] = ()) -> Quantized:
    """Bring the products of a float32 package to int8; nothing is compared with the original.

    Args:
        float32: Names of products that stay in float32.

    Raises:
        ConfigError: There is no product with stored weights, or none of a name.
    """
    model, layers, plan = _planned(package)
    plan = plan.without(float32)
    if not plan.int8:
        reasons = ", ".join(f"'{name}': {why}" for name, why in list(plan.float32.items())[:3])
        raise ConfigError(
            f"{package.root} has no product that could be in int8"
            f"{f' ({reasons})' if reasons else ''}.",
            hint="float16 and bfloat16 are for any model.",
        )
    model = quantize_products(model, plan.int8)
    choose_layers(model, layers)
    return Quantized(model, layers, plan, ops_of(model))


def float32_products(package: OnnxPackage) -> tuple[ir.Model, Mapping[str, str]]:
    """Return the model that `quantized` starts from, and which products it would take.

    Returns:
        The model in float32, without switches by size; and first output of each product to its
        name.
    """
    model, _, plan = _planned(package)
    taken = (node for node in model.graph if node.name in plan.int8)
    return model, {str(node.outputs[0].name): str(node.name) for node in taken}


def _planned(package: OnnxPackage) -> tuple[ir.Model, tuple[LayerInfo, ...], Int8Plan]:
    model = load_ir(package)
    _, layers = make_projections_plain(model, package.manifest.layers)
    # What stands in a branch is not looked at: the switches come back behind.
    without_switches(model)
    store_rearranged(model, PRODUCTS)
    return model, layers, plan_int8(model, gates=frozenset(layer.gates for layer in layers))
