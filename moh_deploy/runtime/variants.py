"""Open variants of a package that tell errors apart: with gates fed, or with moved weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import onnx

from moh_deploy.graph.forced_gates import GateTypes, computed_gates, force_gates, unforceable_layers
from moh_deploy.graph.quantization_noise import add_quantization_noise, has_integer_products
from moh_deploy.graph.weight_noise import add_weight_noise, has_low_weights
from moh_deploy.package import OnnxPackage, load_without_weights
from moh_deploy.runtime.base import AS_IT_IS, FUNCTION_BODIES, Runner, Variant
from moh_deploy.runtime.open_runner import open_runner


def gates_fed(variant: Variant, gates: GateTypes, inner: Sequence[str] = ()) -> Variant:
    """Return a variant that takes gates as inputs.

    Args:
        variant: How it is opened otherwise.
        gates: Name of each layer's gates to their dtype; what routers compute is an output. Without
            any the package runs as it is.
        inner: Names of inner values to return besides.
    """
    # What routers compute is returned besides: once gates are fed, nothing else shows it.
    fed = variant.edited(partial(force_gates, gates=gates)) if gates else variant
    return fed.returning([*map(computed_gates, gates), *inner])


@dataclass(frozen=True)
class PackageVariants:
    """Opens variants of a package; see `validate.variants.Variants`.

    Attributes:
        variant: How the package itself is opened that is judged. Noisy variants run function
            bodies.
    """

    package: OnnxPackage
    variant: Variant = AS_IT_IS

    def why_not_forced(self) -> str | None:
        """Return why the gates cannot be fed; None if they can."""
        paths = unforceable_layers(self._graph(), self.package.manifest.layers)
        if not paths:
            return None
        listed = ", ".join(f"'{path}'" for path in paths)
        return f"attention does not compute with the recorded gates in {listed}"

    def forced(self, gates: GateTypes, inner: Sequence[str] = ()) -> Runner:
        """Open the package with its gates as inputs, as it runs otherwise."""
        return open_runner(self.package, gates_fed(self.variant, gates, inner))

    def noisy(self, gates: GateTypes, inner: Sequence[str] = ()) -> Runner | None:
        """Open function bodies, unoptimised, with gates and ROUNDING_STEP as inputs.

        Returns:
            None if no weight is in half precision, and no product in int8.
        """
        graph = self._graph()
        if has_integer_products(graph):
            return open_runner(
                self.package, self._bodies(gates, inner).edited(add_quantization_noise)
            )
        if not has_low_weights(graph):
            return None
        return open_runner(self.package, self._bodies(gates, inner).edited(add_weight_noise))

    def rounded(self, gates: GateTypes, inner: Sequence[str] = ()) -> Runner | None:
        """Open function bodies, unoptimised, with gates as inputs and every result rounded.

        Returns:
            None but for float16: bfloat16 is rounded in any case, see `KernelUse.emulated_dtype`.
        """
        if self.package.manifest.precision != "float16":
            return None
        return open_runner(self.package, replace(self._bodies(gates, inner), round_results=True))

    def _bodies(self, gates: GateTypes, inner: Sequence[str]) -> Variant:
        # Unoptimised: a fused operator would not see the noise, or the rounding, that stands
        # between its parts.
        bodies = replace(FUNCTION_BODIES, threads=self.variant.threads, spins=self.variant.spins)
        return gates_fed(bodies, gates, inner)

    def _graph(self) -> onnx.GraphProto:
        return load_without_weights(self.package.model_path).graph
