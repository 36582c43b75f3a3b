"""Compare two models: their interfaces, and their answers by `verify`'s rules, ties included."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from moh_deploy.errors import ConfigError
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import Description, ModelInterface, Variant
from moh_deploy.runtime.variants import PackageVariants
from moh_deploy.serving.known_answer import ComputedResults
from moh_deploy.system.npz import Array
from moh_deploy.validate.compare.parity import compare
from moh_deploy.validate.compare.parity_report import ParityReport
from moh_deploy.validate.reference.function_bodies import Recorder
from moh_deploy.validate.reference.layer_values import LayerValues


@dataclass(frozen=True)
class Comparison:
    """Compares the answers of a package with those of a reference."""

    package: OnnxPackage
    layers: tuple[LayerValues, ...]  # of the package
    recorder: Recorder  # runs the reference
    reference: str  # its name in reports
    has_routing: bool = True  # both have the same layers, so that gates are compared as well

    def report(
        self,
        inputs: Mapping[str, Array],
        results: Mapping[str, Array],
        description: Description,
        variant: Variant,
    ) -> ParityReport:
        """Run the reference on the inputs of a request, and compare the package's results.

        After a routing tie `variant` opens the package again, with the gates of the reference.
        """
        expected = self.recorder.record(inputs)
        inner = (name for layer in self.layers for name in layer.names)
        if not results.keys() >= set(inner):
            expected = replace(expected, scores=(), attention=())
        has_gates = self.has_routing and results.keys() >= set(self.package.gate_names)
        return compare(
            self.package,
            ComputedResults(results, self.package.manifest.inputs, description),
            [expected],
            reference=self.reference,
            outputs_only=not has_gates,
            variants=PackageVariants(self.package, replace(variant, extra_outputs=())),
        )


def require_same_interface(name: str, ours: ModelInterface, theirs: ModelInterface) -> None:
    """Check that names, dtypes and ranks of inputs and outputs agree.

    Args:
        name: The second model; it opens the error message.
        ours: The first model.
        theirs: The second model.

    Raises:
        ConfigError: They differ.
    """
    for kind in ("inputs", "outputs"):
        expected, got = (
            sorted(
                (tensor.name, tensor.dtype, len(tensor.shape)) for tensor in getattr(model, kind)
            )
            for model in (ours, theirs)
        )
        if got != expected:
            raise ConfigError(
                f"{name} has the {kind} {got}, expected {expected}.",
                hint="Both are given the same requests: names, dtypes and ranks have to agree.",
            )
