"""The two sides of a probe: the package as it is to be judged, and its function bodies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import onnx

from moh_deploy.graph.forced_gates import fix_routing, fixed_input
from moh_deploy.graph.layer_reads import GateRead, RouterLogits, gate_reads, router_logits
from moh_deploy.package import LayerInfo, Manifest, OnnxPackage, VectorSet
from moh_deploy.runtime.base import FUNCTION_BODIES, GraphEdit, Runner, Variant
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.runtime.variants import PackageVariants
from moh_deploy.system.npz import Array, BoolArray
from moh_deploy.validate.compare.policy import BUILT_IN_POLICY, Policy
from moh_deploy.validate.reference.layer_values import Recorder, names_to_return
from moh_deploy.validate.reference.samples import valid_tokens_of
from moh_deploy.validate.reference.valid_tokens import (
    EVERY_TOKEN,
    TokenView,
    ValidTokens,
    over_axes,
    token_view,
)

CaseStatus = Literal["passed", "failed", "not applicable", "not run"]
Kind = Literal["routing", "input", "corpus"]


@dataclass(frozen=True)
class CaseResult:
    """One case, at one place."""

    # `routing`: logits were put in front of routers. `input`: the model was given these inputs.
    # `corpus`: inputs that are kept in the package.
    kind: Kind
    case: str  # its name, such as `ties` or `one: seq=1`
    place: str  # the path of a layer, or `model outputs`
    # `not applicable`: there is no such case for this model. `not run`: there is, and nobody knows
    # the answer.
    status: CaseStatus
    detail: str  # what failed, or why it did not run; what was compared if it passed


MODEL = "model outputs"


def input_result(case: str, status: CaseStatus, detail: str) -> CaseResult:
    """Return the result of a case in which the model was given inputs."""
    return CaseResult("input", case, MODEL, status, detail)


@dataclass(frozen=True)
class Source:
    """Opens a package in one way, or a variant of it."""

    package: OnnxPackage  # the package
    variant: Variant  # the way

    def open(self, extra_outputs: Sequence[str] = (), edit: GraphEdit | None = None) -> Runner:
        """Load the model; see `Variant`."""
        edited = self.variant if edit is None else self.variant.edited(edit)
        return open_runner(self.package, edited.returning(extra_outputs))


def body_source(package: OnnxPackage) -> Source:
    """Return the reference: function bodies with optimisations off."""
    return Source(package, FUNCTION_BODIES)


def feeding(values: Mapping[str, Array], seen: Sequence[str]) -> GraphEdit:
    """Return an edit that makes inputs of some values, see `fix_routing`.

    Args:
        values: The values.
        seen: Those that are looked at: they are kept, though nothing else may read them.
    """

    def change(graph: onnx.GraphProto) -> None:
        known = {output.name for output in graph.output}
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in seen if name not in known)
        fix_routing(graph, values)

    return change


def fixed_values(values: Mapping[str, Array]) -> dict[str, Array]:
    """Return the inputs that take the place of values."""
    return {fixed_input(name): array for name, array in values.items()}


@dataclass(frozen=True)
class RoutedLayer:
    """A layer that has a MoHRouter."""

    info: LayerInfo  # what the manifest says of it
    router: RouterLogits  # its router
    reads: Sequence[GateRead]  # the values that it reads as its gates

    @property
    def values(self) -> list[str]:
        """Names of what its router makes, of what its attention makes, and of all between them."""
        named = [self.router.gates, self.router.attention]
        between = [name for read in self.reads for name in read.values]
        return [name for name in dict.fromkeys((*named, *between)) if name]


@dataclass(frozen=True)
class Sides:
    """The two sides of a probe. Sessions are opened on first use: each has all weights."""

    package: OnnxPackage  # the package
    subject: Source  # the package as it is to be judged
    reference: Source  # its function bodies
    policy: Policy = BUILT_IN_POLICY  # what counts as equal
    # The input that is 0 for padding, which is not compared; None if all tokens count.
    valid_tokens: str | None = None

    @cached_property
    def graph(self) -> onnx.GraphProto:
        """The graph of the package, without weights that are in other files."""
        return onnx.load(self.package.model_path, load_external_data=False).graph

    @cached_property
    def routed(self) -> tuple[RoutedLayer, ...]:
        """The layers that have a MoHRouter, in the order in which they run."""
        layers = self.package.manifest.layers
        return tuple(
            RoutedLayer(layer, router, gate_reads(self.graph, layer, router.gates))
            for layer, router in zip(layers, router_logits(self.graph, layers), strict=True)
            if router is not None
        )

    @cached_property
    def variants(self) -> PackageVariants:
        """The subject with gates fed to it."""
        return PackageVariants(self.subject.package, self.subject.variant)

    @cached_property
    def runner(self) -> Runner:
        """A session of the subject that also returns what is compared of its layers."""
        return self.subject.open(names_to_return(self.package))

    @cached_property
    def recorder(self) -> Recorder:
        """The recorder of runs of the function bodies."""
        return Recorder.of(self.package, self.reference.variant)

    def view(self, run: VectorSet) -> TokenView:
        """Return what counts of the outputs of a run."""
        valid = counted_tokens(run, self.package.manifest, self.valid_tokens)
        return EVERY_TOKEN if valid is None else token_view(valid, self.package.manifest, run)

    @cached_property
    def _recorded_mask(self) -> BoolArray | None:
        """Tokens [B, S] of the first recorded inputs that count; None for all."""
        manifest = self.package.manifest
        valid = counted_tokens(self.package.vectors[0], manifest, self.valid_tokens)
        return None if valid is None else valid.mask

    def counted_attention(self, router: RouterLogits, shape: tuple[int, ...]) -> BoolArray:
        """Return which elements of a layer's attention count, run on the first recorded inputs.

        All do where its tokens are others than the mask's, or in another order than its gates.
        """
        mask, tokens = self._recorded_mask, masked_axes(shape)
        if mask is None or not router.in_order:
            return np.ones(shape, np.bool_)
        if tuple(shape[axis] for axis in tokens if axis < len(shape)) != mask.shape:
            return np.ones(shape, np.bool_)
        return over_axes(mask, tokens, shape)


def masked_axes(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the axes of samples and tokens of attention [B, S, C] or [B, H, S, D]."""
    return (0, 2) if len(shape) == 4 else (0, 1)


def counted_tokens(run: VectorSet, manifest: Manifest, mask: str | None) -> ValidTokens | None:
    """Return which tokens of a run count; None for all.

    All do in a run of nothing but padding: it has no others.
    """
    found = valid_tokens_of(run, {}, "run", manifest, mask)
    return None if found is None or not found.mask.any() else found
