"""A package in int8 as it would be in float32, and with only some products in int8."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from moh_deploy.graph.float32_form import store
from moh_deploy.graph.forced_gates import GateTypes
from moh_deploy.graph.load_model import load_ir
from moh_deploy.graph.switch_by_size import without_switches
from moh_deploy.package import OnnxPackage
from moh_deploy.package.writer import save_model
from moh_deploy.runtime.quantized_package import float32_products, quantized

INT8 = "int8"


@dataclass(frozen=True)
class Int8Form:
    """The float32 form of a package in int8; see `validate.bisection.cure.Form`.

    Attributes:
        package: Stored in a scratch directory, with the manifest of the one in int8.
        base: The float32 package that is brought to int8.
        names: First output of each product that may be in int8 to its name.
    """

    package: OnnxPackage
    base: OnnxPackage
    names: Mapping[str, str]

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
