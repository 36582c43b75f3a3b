"""Compare the answers of two models to a request by `verify`'s rules, routing ties included."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import Description, Variant
from moh_deploy.runtime.variants import PackageVariants
from moh_deploy.serving.known_answer import ComputedResults
from moh_deploy.system.npz import Array
from moh_deploy.validate.function_bodies import Recorder
from moh_deploy.validate.layer_values import LayerValues
from moh_deploy.validate.parity import compare
from moh_deploy.validate.parity_report import ParityReport


@dataclass(frozen=True)
class Comparison:
    """Compares the answers of a package with those of a reference.

    Attributes:
        package: The package that is judged.
        layers: Where the inner values of its layers are.
        recorder: Runs the reference.
        reference: The name of the reference in reports.
        has_routing: Both have the same layers, so that gates are compared as well.
    """

    package: OnnxPackage
    layers: tuple[LayerValues, ...]
    recorder: Recorder
    reference: str
    has_routing: bool = True

    def report(
        self,
        inputs: Mapping[str, Array],
        results: Mapping[str, Array],
        description: Description,
        variant: Variant,
    ) -> ParityReport:
        """Run the reference, and compare.

        Args:
            inputs: Of the request.
            results: Outputs of the package, gates, and other inner values where there are some.
            description: Says what ran the package.
            variant: How the package is opened again, with the gates of the reference, after a tie.
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
