"""Compare what two rungs answer to a request by `verify`'s rules, near-ties of routers included."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import Description, Variant
from moh_deploy.runtime.variants import PackageVariants
from moh_deploy.serving.known_answer import ComputedResults
from moh_deploy.system.npz import Array
from moh_deploy.validate.compare.parity import compare
from moh_deploy.validate.compare.parity_report import ParityReport
from moh_deploy.validate.reference.function_bodies import Recorder
from moh_deploy.validate.reference.layer_values import LayerValues


@dataclass(frozen=True)
class Comparison:
    """Compares answers with those of another rung, by the rules of `verify`.

    Attributes:
        package: What is judged: says which outputs and layers there are.
        layers: Where the inner values of its layers are.
        recorder: Runs what it is compared with.
        reference: What that is, in the words of a report.
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
            results: What is judged: outputs, gates, and as many other inner values as there are.
            description: Of what ran.
            variant: How that is opened: where a near-tie went the other way, it is opened once more
                with the reference's gates fed to it.
        """
        expected = self.recorder.record(inputs)
        # Who kept outputs and gates only is compared by those.
        if not all(name in results for layer in self.layers for name in layer.names):
            expected = replace(expected, scores=(), attention=())
        has_gates = self.has_routing and all(name in results for name in self.package.gate_names)
        return compare(
            self.package,
            ComputedResults(results, self.package.manifest.inputs, description),
            [expected],
            reference=self.reference,
            outputs_only=not has_gates,
            variants=PackageVariants(self.package, replace(variant, extra_outputs=())),
        )
