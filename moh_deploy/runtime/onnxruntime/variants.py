"""Variants of a package that tell errors apart: gates that are fed to it, weights that move."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx

from moh_deploy.graph.forced_gates import GateTypes, computed_gates, force_gates, unforceable_layers
from moh_deploy.graph.weight_noise import add_weight_noise, has_low_weights
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.onnxruntime.session import OrtRunner, open_session
from moh_deploy.runtime.runner import Kernels


def open_forced(
    package: OnnxPackage,
    gates: GateTypes,
    *,
    extra_outputs: Sequence[str] = (),
    kernels: Kernels = "auto",
    threads: int | None = None,
    optimize: bool = True,
    round_results: bool = False,
) -> OrtRunner:
    """Open a package with its gates as inputs; see `open_session`.

    Args:
        gates: Name of each layer's gates to their dtype; what routers compute is an output. Without
            any the package runs as it is.
        extra_outputs: Inner values to return besides.
    """
    return open_session(
        package,
        kernels=kernels,
        threads=threads,
        extra_outputs=[*map(computed_gates, gates), *extra_outputs],
        optimize=optimize,
        change=(lambda graph: force_gates(graph, gates)) if gates else None,
        round_results=round_results,
    )


@dataclass(frozen=True)
class OrtVariants:
    """Opens variants of a package in ONNX Runtime; see `validate.variants.Variants`.

    Attributes:
        kernels: What runs MoH nodes of the package itself. Noisy variants run function bodies.
        threads: Threads within one operator, as of the session that is judged.
        round_results: As of that session.
    """

    package: OnnxPackage
    kernels: Kernels = "auto"
    threads: int | None = None
    round_results: bool = False

    def why_not_forced(self) -> str | None:
        """Return why the gates cannot be fed; None if they can."""
        paths = unforceable_layers(self._graph(), self.package.manifest.layers)
        if not paths:
            return None
        listed = ", ".join(f"'{path}'" for path in paths)
        return f"attention does not compute with the recorded gates in {listed}"

    def forced(self, gates: GateTypes, inner: Sequence[str] = ()) -> OrtRunner:
        """Open the package with its gates as inputs, as it runs otherwise."""
        return open_forced(
            self.package,
            gates,
            extra_outputs=inner,
            kernels=self.kernels,
            threads=self.threads,
            round_results=self.round_results,
        )

    def noisy(self, gates: GateTypes, inner: Sequence[str] = ()) -> OrtRunner | None:
        """Open function bodies, unoptimised, with gates and ROUNDING_STEP as inputs.

        Returns:
            None if no weight is in half precision.
        """
        if not has_low_weights(self._graph()):
            return None

        def change(graph: onnx.GraphProto) -> None:
            force_gates(graph, gates)
            add_weight_noise(graph)

        return self._bodies(gates, inner, change, round_results=False)

    def rounded(self, gates: GateTypes, inner: Sequence[str] = ()) -> OrtRunner | None:
        """Open function bodies, unoptimised, with gates as inputs and every result rounded.

        Returns:
            None but for float16: bfloat16 is rounded in any case, see `KernelUse.emulated_dtype`.
        """
        if self.package.manifest.precision != "float16":
            return None
        return self._bodies(
            gates, inner, lambda graph: force_gates(graph, gates), round_results=True
        )

    def _bodies(
        self,
        gates: GateTypes,
        inner: Sequence[str],
        change: Callable[[onnx.GraphProto], object],
        *,
        round_results: bool,
    ) -> OrtRunner:
        return open_session(
            self.package,
            kernels="off",
            threads=self.threads,
            extra_outputs=[*map(computed_gates, gates), *inner],
            optimize=False,
            change=change,
            round_results=round_results,
        )

    def _graph(self) -> onnx.GraphProto:
        return onnx.load(self.package.model_path, load_external_data=False).graph
