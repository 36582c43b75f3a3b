"""Open variants of a package that tell errors apart: with gates fed, or with moved weights."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import onnx

from moh_deploy.graph.forced_gates import GateTypes, computed_gates, force_gates, unforceable_layers
from moh_deploy.graph.quantization_noise import add_quantization_noise, has_integer_products
from moh_deploy.graph.weight_noise import add_weight_noise, has_low_weights, round_operands
from moh_deploy.package import OnnxPackage, load_without_weights
from moh_deploy.runtime.base import AS_IT_IS, FUNCTION_BODIES, Runner, Variant
from moh_deploy.runtime.open_runner import open_runner

Noise = Literal["weights", "results", "operands"]
"""What moves in a noisy variant: weights, by up to the input ROUNDING_STEP (`weight_noise`); every
result, rounded as hardware does that computes in half precision; or the operands of attention's
products, rounded where ROUNDING_STEP is 1 (`round_operands`)."""


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
    """Opens variants of a package; see `validate.variants.Variants`."""

    package: OnnxPackage
    # How the package itself is opened that is judged. Noisy variants run function bodies.
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

    def noisy(self, noise: Noise, gates: GateTypes, inner: Sequence[str] = ()) -> Runner | None:
        """Open function bodies, unoptimised, with gates as inputs and something that moves.

        Returns:
            None for weights if none is in half precision, and no product in integers; for results
            in any precision but float16: bfloat16 is rounded in any case, see
            `KernelUse.emulated_dtype`.
        """
        # Unoptimised: a fused operator would not see the noise, or the rounding, that stands
        # between its parts.
        bodies = replace(FUNCTION_BODIES, threads=self.variant.threads, spins=self.variant.spins)
        bodies = gates_fed(bodies, gates, inner)
        if noise == "operands":
            return open_runner(self.package, bodies.edited(round_operands))
        if noise == "results":
            if self.package.manifest.precision != "float16":
                return None
            return open_runner(self.package, replace(bodies, round_results=True))
        graph = self._graph()
        if has_integer_products(graph):
            return open_runner(self.package, bodies.edited(add_quantization_noise))
        if not has_low_weights(graph):
            return None
        return open_runner(self.package, bodies.edited(add_weight_noise))

    def _graph(self) -> onnx.GraphProto:
        return load_without_weights(self.package.model_path).graph
