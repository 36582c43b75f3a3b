"""A package whose products have few bits: its model, and what has more bits than that."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from moh_deploy.errors import ConfigError
from moh_deploy.graph.choose_layers import choose_layers, ops_of
from moh_deploy.graph.float32_form import store
from moh_deploy.graph.forced_gates import GateTypes
from moh_deploy.graph.integer_policy import PRODUCTS, PROJECTIONS, BitsPlan, plan_int4, plan_int8
from moh_deploy.graph.load_model import load_ir
from moh_deploy.graph.plain_products import (
    make_projections_plain,
    products_of_gemms,
    store_rearranged,
)
from moh_deploy.graph.static_scales import Range, quantize_static, ranges_of, read_by, return_ranges
from moh_deploy.graph.switch_by_size import without_switches
from moh_deploy.graph.weights_in_blocks import store_in_blocks
from moh_deploy.package import LayerInfo, Manifest, OnnxPackage
from moh_deploy.package.writer import save_model
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.onnxruntime.quantizer import quantize_products, quantize_weight
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.system.npz import Array
from moh_deploy.system.staging import scratch_directory


@dataclass(frozen=True)
class Quantized:
    """A package's model with products in few bits."""

    model: ir.Model  # its weights are in memory
    # Those of the package. In int8 projections are products, so none runs `projected`.
    layers: tuple[LayerInfo, ...]
    precision: str
    lowered: int  # how many products have that precision
    more_bits: Mapping[str, str]  # name of each other product to the reason why it has more
    ops: Mapping[str, int]
    # Of each value that products in int8 read, where scales are static; else empty.
    ranges: Mapping[str, Range] = field(default_factory=dict)

    def manifest(self, package: OnnxPackage) -> Manifest:
        """Return the manifest: what was measured in float32 says nothing of it."""
        # In int8 the products around attention read 8 bits, and bfloat16 has as many (ADR 74).
        in_int8 = self.precision == "int8"
        return replace(
            package.manifest,
            precision=self.precision,
            compute_type="bfloat16" if in_int8 else package.manifest.compute_type,
            layers=self.layers,
            ops=dict(self.ops),
            activation_ranges=dict(self.ranges),
            proof=None,
            rounding=None,
            tuning=None,
            runtime=None,
        )


def quantized(
    package: OnnxPackage,
    *,
    to: str = "int8",
    float32: Collection[str] = (),
    ranges: Mapping[str, Range] | None = None,
) -> Quantized:
    """Bring the products of a float32 package to few bits; nothing is compared with the original.

    Args:
        to: A name of `FEW_BITS`.
        float32: Names of products that stay in float32.
        ranges: In int8, of what products read, as `activation_ranges` measures them: scales are
            made of these, and stored. Without, a scale is measured whenever a product runs.

    Raises:
        ConfigError: There is no product with stored weights, or none of a name, or no range of
            what a product reads.
    """
    if to == "int4":
        return _int4(package, float32)
    model, layers, plan = _planned_int8(package)
    plan = plan.without(float32)
    _require_any(package, "int8", plan)
    if ranges:
        read = read_by(model, plan.few)
        unknown = [name for name in read if name not in ranges]
        if unknown:
            raise ConfigError(f"nothing says how large '{unknown[0]}' gets, which a product reads.")
        ranges = {name: ranges[name] for name in read}
        quantize_static(model, plan.few, ranges)
    else:
        model = quantize_products(model, plan.few)
    choose_layers(model, layers)
    ops = ops_of(model)
    return Quantized(model, layers, "int8", len(plan.few), plan.float32, ops, ranges or {})


def activation_ranges(
    package: OnnxPackage, runs: Iterable[Mapping[str, Array]], *, float32: Collection[str] = ()
) -> dict[str, Range]:
    """Run a float32 package, and return the range of each value that products in int8 would read.

    Args:
        runs: Inputs of each run.
        float32: Names of products that stay in float32.

    Raises:
        ConfigError: There is no product that could be in int8, or none of a name.
    """
    model, layers, plan = _planned_int8(package)
    plan = plan.without(float32)
    _require_any(package, "int8", plan)
    names = read_by(model, plan.few)
    package = replace(package, manifest=replace(package.manifest, layers=layers))
    found: dict[str, Range] = dict.fromkeys(names, (0.0, 0.0))
    with scratch_directory("calibrating") as scratch:
        # The products as they are quantised: projections of layers are not among the package's.
        form = store(model, package, scratch)
        edited = Variant(spins=False).edited(partial(return_ranges, names=names))
        with open_runner(form, edited) as runner:
            for inputs in runs:
                for name, (least, largest) in ranges_of(runner.run(inputs), names).items():
                    found[name] = min(found[name][0], least), max(found[name][1], largest)
    return found


def float32_products(package: OnnxPackage) -> tuple[ir.Model, Mapping[str, str]]:
    """Return the model that `quantized` makes int8 of, and which products it would take.

    Returns:
        The model in float32, without switches by size; and first output of each product to its
        name.
    """
    model, _, plan = _planned_int8(package)
    taken = (node for node in model.graph if node.name in plan.few)
    return model, {str(node.outputs[0].name): str(node.name) for node in taken}


def _planned_int8(package: OnnxPackage) -> tuple[ir.Model, tuple[LayerInfo, ...], BitsPlan]:
    model = load_ir(package)
    _, layers = make_projections_plain(model, package.manifest.layers)
    # What stands in a branch is not looked at: the switches come back behind.
    without_switches(model)
    store_rearranged(model, PRODUCTS)
    return model, layers, plan_int8(model, gates=frozenset(layer.gates for layer in layers))


def _int4(package: OnnxPackage, float32: Collection[str]) -> Quantized:
    model, layers = load_ir(package), package.manifest.layers
    without_switches(model)
    store_rearranged(model, (*PRODUCTS, *PROJECTIONS))
    gates = frozenset(layer.gates for layer in layers)
    plan = plan_int4(model, gates=gates, float32=float32)
    _require_any(package, "int4", plan)
    bits = {name: 8 if name in plan.int8 else 4 for name in plan.few}
    if products_of_gemms(model, bits):
        store_rearranged(model, PRODUCTS)  # weights that Gemms transposed
    store_in_blocks(model, bits, quantize_weight)
    choose_layers(model, layers)
    reasons = {**{name: f"8 bits: {why}" for name, why in plan.int8.items()}, **plan.float32}
    lowered = len(plan.few) - len(plan.int8)
    return Quantized(model, layers, "int4", lowered, reasons, ops_of(model))


def _require_any(package: OnnxPackage, to: str, plan: BitsPlan) -> None:
    if plan.few:
        return
    reasons = ", ".join(f"'{name}': {why}" for name, why in list(plan.float32.items())[:3])
    raise ConfigError(
        f"{package.root} has no product that could be in {to}{f' ({reasons})' if reasons else ''}.",
        hint="float16 and bfloat16 are for any model.",
    )


# A package in int8 as it would be in float32, and with only some products in int8.

INT8 = "int8"


@dataclass(frozen=True)
class Int8Form:
    """The float32 form of a package in int8; see `validate.bisection.mixed_precision.Form`."""

    package: OnnxPackage  # stored in a scratch directory, with the manifest of the one in int8
    base: OnnxPackage  # the float32 package that is brought to int8
    names: Mapping[str, str]  # first output of each product that may be in int8 to its name

    @property
    def low(self) -> str:
        return INT8

    @property
    def weights(self) -> str:
        """The origin of the float32 weights, in words."""
        return "the weights of the float32 package"

    @property
    def rounding(self) -> frozenset[str]:
        """First outputs of the products that may be in int8."""
        return frozenset(self.names)

    def lowered(self, keep: Mapping[str, str]) -> ir.Model:
        """Return the model in int8, without switches by size, with some products in float32."""
        # Without a single product in int8 there is nothing for the quantiser to do.
        if self.names.keys() <= keep.keys():
            model = load_ir(self.package)
        else:
            model = quantized(self.base, float32=[self.names[name] for name in keep]).model
        without_switches(model)
        return model

    def gate_types(self, model: ir.Model) -> GateTypes:
        """Return the dtypes of the layers' gates: none is in int8."""
        return dict.fromkeys(self.package.gate_names, np.dtype(np.float32))


def lowered_to_int8(base: OnnxPackage, root: Path) -> tuple[OnnxPackage, Int8Form]:
    """Bring a float32 package to int8 in a scratch directory; nothing is compared.

    Returns:
        A package to open sessions of, which has no files but the model, and its float32 form.

    Raises:
        ConfigError: No product of it can be in int8.
    """
    made = quantized(base)
    for name in (INT8, "float32"):
        (root / name).mkdir(parents=True)
    save_model(made.model, base, root / INT8)
    package = replace(base, root=root / INT8, manifest=made.manifest(base))
    model, names = float32_products(base)
    form = Int8Form(store(model, package, root / "float32"), base, names)
    return package, form
