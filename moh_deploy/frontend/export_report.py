"""The report of an export: the package, and its agreement with the original."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from moh_deploy import package as pkg
from moh_deploy.config.dims import limits_text
from moh_deploy.package.interface import marks_padding, mask_input
from moh_deploy.report.document import Block, Document, Text
from moh_deploy.report.report import Report, count, in_json
from moh_deploy.runtime import layers_text
from moh_deploy.runtime.kernel_use import KernelUse
from moh_deploy.validate.compare.verify_runs import ProvenRun


@dataclass(frozen=True)
class ExportReport(Report):
    """The result of one export.

    Attributes:
        package: The directory that was written.
        layers: Every MoH layer that was recognised.
        kept: Operators outside of them that stay because their replacement gave another result.
        ungated: How many attentions have no gates.
        other_gates: How many have gates of `channels`, or scale `heads` by constants.
        max_abs_error: Largest absolute difference of any output element from the original model.
        routing_agreement: Share of (token, head) decisions equal to the original's, near-ties left
            out; 1.0 without layers.
        vector_sets: How many runs of the original were compared.
        runs: How the package was run to compare it: as function bodies, and where there is a kernel
            library, with that too. The errors above are those of the function bodies.
        valid_tokens: The input that says which tokens are valid, `not` before one that is 1 for
            padding; None if all are.
        valid_tokens_found: The graph shows that; the user did not name it.
        padding_inputs: All inputs that the graph shows to do so, unless the user named one.
        dim_ranges: Smallest and largest size of dimensions that are limited.
        limits: What is in the way beyond, by dimension.
        unnamed: Dimensions of an exported program that have no name, and their places: `x:1`.
        caches: Caches that are written in place, or None.
        seconds: Wall time of each step.
    """

    package: Path
    layers: tuple[pkg.LayerInfo, ...]
    inputs: tuple[pkg.TensorInfo, ...]
    outputs: tuple[pkg.TensorInfo, ...]
    max_abs_error: float
    routing_agreement: float
    vector_sets: int
    runs: tuple[ProvenRun, ...]
    seconds: Mapping[str, float] = field(default_factory=dict)
    kept: tuple[pkg.KeptOperators, ...] = ()
    near_misses: tuple[pkg.NearMiss, ...] = ()
    other_routers: tuple[pkg.OtherRouter, ...] = ()
    ungated: int = 0
    other_gates: Mapping[pkg.OtherGates, int] = field(default_factory=dict)
    valid_tokens: str | None = None
    valid_tokens_found: bool = False
    padding_inputs: tuple[str, ...] = ()
    dim_ranges: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)
    limits: Mapping[str, str] = field(default_factory=dict)
    unnamed: Mapping[str, str] = field(default_factory=dict)
    caches: pkg.CachesInPlace | None = None

    @property
    @in_json()
    def moh_layers(self) -> int:
        """Return the number of recognised layers."""
        return len(self.layers)

    @property
    @in_json()
    def replaced_layers(self) -> int:
        """Return the number of layers that are operators now."""
        return sum(layer.replaced for layer in self.layers)

    @property
    @in_json()
    def kernels(self) -> KernelUse:
        """Return the kernels of the last run."""
        return self.runs[-1].kernels

    def document(self) -> Document:
        """Return what it says."""
        blocks: list[Block] = [
            Text(
                f"EQUAL to the original on {count(run.vector_sets, 'run')}: max abs error"
                f" {run.max_abs_error:.3g}, routing agreement {run.routing_agreement:.6g};"
                f" {layers_text.runs_text(run.layer_runs)};"
                f" {layers_text.nodes_text(run.kernel_nodes, run.function_nodes)}",
                True,
            )
            for run in self.runs
        ]
        if self.layers:
            replaced = [layer.replaced for layer in self.layers]
            title = count(len(self.layers), "MoH layer")
            blocks.append(layers_text.layer_table(title, self.layers, "replaced", replaced))
        blocks += map(
            Text, [*layers_text.reasons(self.layers), *layers_text.constant_gates(self.layers)]
        )
        blocks += map(
            Text,
            layers_text.not_layers(
                len(self.layers), self.near_misses, self.ungated, self.other_gates
            ),
        )
        blocks += map(Text, map(layers_text.other_router_text, self.other_routers))
        blocks += map(Text, map(layers_text.kept_text, self.kept))
        blocks += [] if self.caches is None else [Text(layers_text.caches_text(self.caches))]
        blocks += (
            Text(f"Dimension '{name}' may be {limits_text(self.dim_ranges[name])}: {why}.")
            for name, why in self.limits.items()
            if name in self.dim_ranges
        )
        blocks += (
            Text(
                f"An exported program does not keep what dimensions were called: '{name}' is"
                f" {place.replace(':', ', axis ')}; `--dynamic {place}=NAME` names it."
            )
            for name, place in self.unnamed.items()
        )
        blocks += map(Text, self._padding_lines())
        tokens = self.runs[0].tokens
        blocks += [] if tokens is None else [Text(tokens.describe())]
        written = f"written to {self.package} in {sum(self.seconds.values()):.1f} s"
        remarks = (self.runs[-1].kernels.describe(), written)
        return Document("export", tuple(blocks), remarks=remarks)

    def _padding_lines(self) -> Iterator[str]:
        """Yield sentences on inputs that the graph shows to be masks of valid tokens."""
        if self.valid_tokens is not None and self.valid_tokens_found:
            yield (
                f"The graph shows that '{mask_input(self.valid_tokens)}' is"
                f" {int(marks_padding(self.valid_tokens))} for padding: no attention of a MoH"
                " layer reads such a token. `--valid-tokens all` compares every token."
            )
            others = [name for name in self.padding_inputs if name != self.valid_tokens]
            if others:
                yield (
                    f"It shows so of {_listed(others)}, too, with the same values in the example:"
                    f" padding by '{self.valid_tokens}' is what was left out."
                )
        elif len(self.padding_inputs) > 1:
            first, *_ = self.padding_inputs
            yield (
                f"The graph shows that {_listed(self.padding_inputs)} tell padding, each of"
                " tokens of its own or with other values: every token was compared."
                f" `--valid-tokens {shlex.quote(first)}`, or another of them, leaves its padding"
                " out."
            )


def _listed(names: Sequence[str]) -> str:
    *most, last = (f"'{name}'" for name in names)
    return f"{', '.join(most)} and {last}" if most else last
