"""The two sides of a probe, the package and its function bodies, and the inputs at the edges."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import onnx

from moh_deploy.errors import ConfigError
from moh_deploy.graph.forced_gates import fix_routing, fixed_input
from moh_deploy.graph.layer_reads import GateRead, RouterLogits, gate_reads, router_logits
from moh_deploy.package import LayerInfo, Manifest, OnnxPackage, VectorSet
from moh_deploy.package.interface import marks_padding, mask_input
from moh_deploy.runtime.base import FUNCTION_BODIES, GraphEdit, Runner, Variant
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.runtime.variants import PackageVariants
from moh_deploy.system.npz import Array, BoolArray
from moh_deploy.system.suggest import did_you_mean
from moh_deploy.validate.compare.policy import BUILT_IN_POLICY, Policy
from moh_deploy.validate.reference.input_sets import sized_inputs
from moh_deploy.validate.reference.layer_values import Recorder, names_to_return
from moh_deploy.validate.reference.samples import valid_tokens_of
from moh_deploy.validate.reference.valid_tokens import (
    EVERY_TOKEN,
    TokenView,
    ValidTokens,
    mask_like,
    over_axes,
    token_view,
    valid_tokens,
)

# Inputs at the edge of what a model takes: nothing, one, the most, padding only.

ZERO, ONE, LONGEST, PADDING = "zero", "one", "longest", "padding only"

# The budget is for four copies of the largest value, since several are held at once.
_MOST_BYTES, _COPIES = 2**28, 4
_LONGEST_OF_ANY = 4096


@dataclass(frozen=True)
class InputState:
    """Inputs of a case, or the reason against it."""

    case: str  # its name, with the sizes
    inputs: Mapping[str, Array] | None  # input name to array; None if there is no such case
    reason: str = ""  # why they are missing
    # False: the model has no such case. True without inputs: what it needs to run is unknown.
    exists: bool = True
    remark: str = ""  # what is to be known of the inputs, for the report


def input_states(
    package: OnnxPackage, longest: Mapping[str, int], mask: str | None
) -> Iterator[InputState]:
    """Return every state of every dynamic dimension, one at a time, the others as in the example.

    Args:
        package: The package; it has recorded inputs, from which the elements are drawn.
        longest: Dimension to the size that is its longest; without, what the trace is good for, or
            what fits into memory.
        mask: The input that says which tokens are no padding.

    Raises:
        ConfigError: A dimension or an input is unknown, or no mask.
    """
    for name, size in longest.items():
        if name not in package.manifest.dims:
            known = ", ".join(package.manifest.dims) or "none: every size is fixed"
            raise ConfigError(
                f"longest is of '{name}', but the dynamic dimensions are {known}.",
                hint=did_you_mean(name, package.manifest.dims) or None,
            )
        if size < 1:
            raise ConfigError(f"longest of '{name}' is {size}, expected at least 1.")
    if mask is not None:
        specs, wanted = [spec.name for spec in package.manifest.inputs], mask_input(mask)
        if wanted not in specs:
            raise ConfigError(
                f"valid_tokens is '{mask}', but the model has {', '.join(specs)}.",
                hint=did_you_mean(wanted, specs) or None,
            )
        if package.vectors:  # Of [batch, tokens], and of nothing but 0 and 1.
            array = package.vectors[0].inputs[wanted]
            valid_tokens(mask, array, None, where="recorded run 0")
    if not package.vectors:
        why = "the package holds no recorded inputs to draw from."
        yield from (InputState(case, None, why) for case in (ZERO, ONE, LONGEST, PADDING))
        return
    if not package.manifest.dims:
        for case in (ZERO, ONE, LONGEST):
            yield InputState(case, None, "every size of the inputs is fixed.", exists=False)
    for name in package.manifest.dims:
        # One dimension at a time, the others as recorded: a failure names its dimension.
        yield _at_sizes(package, ZERO, {name: 0}, mask)
        yield _at_sizes(package, ONE, {name: 1}, mask)
        asked = longest.get(name)
        size, remark = _longest(package, name) if asked is None else (asked, "as asked")
        yield _at_sizes(package, LONGEST, {name: size}, mask, remark)
    # All of size 1 at once is a shape that broadcasting mistakes for others.
    if len(package.manifest.dims) > 1:
        yield _at_sizes(package, ONE, dict.fromkeys(package.manifest.dims, 1), mask)
    yield _padding(package, mask)


def _at_sizes(
    package: OnnxPackage, case: str, sizes: Mapping[str, int], mask: str | None, remark: str = ""
) -> InputState:
    case = f"{case}: {', '.join(f'{name}={size}' for name, size in sizes.items())}"
    try:
        # A size that the model was not traced for is no case of it.
        (found,) = sized_inputs(package, {name: [size] for name, size in sizes.items()})
    except ConfigError as error:
        return InputState(case, None, error.message, exists=False)
    inputs = found.inputs
    # Elements are drawn by chance, so all tokens could be padding: here none is.
    if mask is not None:
        inputs = {**inputs, **_all(True, mask, inputs)}
    return InputState(case, inputs, remark=remark)


def _longest(package: OnnxPackage, name: str) -> tuple[int, str]:
    """Return the largest size that is tried unasked, and why it is that one.

    It is what the trace is good for, or else the size whose attention scores fit into memory, if
    all of them grow with its square.
    """
    example, limit = package.manifest.dims[name], package.manifest.largest_size(name)
    budget = min(_MOST_BYTES, _free_bytes() // 4)
    scores = max(map(_score_bytes, package.manifest.layers), default=0)
    recorded = package.vectors[0]
    values = sum(x.nbytes for x in (*recorded.inputs.values(), *recorded.outputs.values()))
    # Scores [B, H, S, S] grow with the square of a size, inputs and outputs with the size itself.
    growth = min(math.sqrt(budget / max(_COPIES * scores, 1)), budget / max(_COPIES * values, 1))
    fits = max(example, min(int(example * growth), _LONGEST_OF_ANY))
    if limit is not None and limit <= fits:
        return limit, "the most that the trace is good for"
    mib = budget // 2**20
    if fits == _LONGEST_OF_ANY:
        why = f"{fits} is the most that is tried unasked"
    elif fits == example:
        why = f"the example's: scores of more may not fit into {mib} MiB"
    else:
        why = f"the most whose scores surely fit into {mib} MiB"
    more = "there is no limit to it" if limit is None else f"the trace is good for {limit}"
    return fits, f"{why}; {more}, --longest {name}=N runs another"


def _score_bytes(layer: LayerInfo) -> int:
    keys = layer.kv_len or layer.seq_len or 1
    # float32 scores [B, H, S, keys] of one layer; sizes that are not known count as 1.
    return 4 * layer.batch * layer.num_heads * (layer.seq_len or 1) * keys


def _free_bytes() -> int:
    """Return the memory that is free, as the system says; a GiB where it does not."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 2**30


def _padding(package: OnnxPackage, mask: str | None) -> InputState:
    if mask is None:
        matrices = {k: array for k, array in package.vectors[0].inputs.items() if array.ndim == 2}
        candidates = [k for k, matrix in matrices.items() if np.isin(matrix, (0, 1)).all()]
        if not candidates:
            reason = "no input of two axes holds 0 and 1 only, and so could say what is padding."
            return InputState(PADDING, None, reason, exists=False)
        reason = (
            "it is unknown which input marks valid tokens: --valid-tokens NAME, one of"
            f" {', '.join(candidates)}, or none of them."
        )
        return InputState(PADDING, None, reason)
    known = package.vectors[0].inputs
    inputs = {**known, **_all(False, mask, known)}
    name = mask_input(mask)
    means = f"all {int(marks_padding(mask))}" if known[name].ndim == 2 else "hides all"
    return InputState(f"{PADDING}: {name} {means}", inputs)


def _all(valid: bool, mask: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return the input that is the mask, by which all tokens are valid, or none."""
    name = mask_input(mask)
    known = inputs[name]
    marked = valid != marks_padding(mask)
    return {name: mask_like(np.full((known.shape[0], known.shape[-1]), marked), known)}


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
    # `not applicable`: there is no such case for this model. `not run`: there is, and it is unknown
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
