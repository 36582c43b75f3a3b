"""Run a program that holds original and inserted operators, and compare layer by layer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Interpreter, Node

from moh_deploy.frontend.fx.arrays import dtype_name, to_numpy
from moh_deploy.frontend.prove import measured_rounding
from moh_deploy.frontend.recognize.routers.router import Router
from moh_deploy.frontend.rewrite import Rewrite
from moh_deploy.frontend.rewrite.rewritten import Swap
from moh_deploy.ops import op_names
from moh_deploy.package import MASKS_BEYOND, Rounding, beside_masks
from moh_deploy.system.npz import Array
from moh_deploy.validate.compare.tolerances import tolerance_for


@dataclass(frozen=True)
class LayerDifference:
    """The difference between an inserted operator's result and the original's."""

    words: str  # what a report says
    # Largest absolute difference; None where the shapes differ, or one of the two results is not
    # finite.
    max_abs_error: float | None = None


@dataclass(frozen=True)
class LayerRecord:
    """One layer's gates, margins, scores and attention in one run of the original operators."""

    gates: torch.Tensor  # [B, S, H]
    # [B, S]: last chosen minus first unchosen score of a token; inf where nothing is selected.
    margins: torch.Tensor
    # [B, S, candidates]: what is ranked, of the last heads; None where that is not known.
    scores: Array | None
    # The fingerprint of the gated heads; None where they have no view [B, S, ...].
    attention: Array | None
    # How the inserted operators differ from the original ones, in words; None if they agree.
    disagreement: str | None
    counted: torch.Tensor  # [B, S]: the tokens that are compared: no padding


@dataclass(frozen=True)
class Recording:
    """One run of the original operators."""

    outputs: list[torch.Tensor]  # the tensors of the program's outputs, in order
    layers: list[LayerRecord]  # one record for each rewrite, in order
    # For each swap how its nodes differ; None if they agree.
    disagreements: list[LayerDifference | None]
    # How far rounding moves it; None if that was not asked for, or cannot be known.
    rounding: Rounding | None = None


def record(
    program: ExportedProgram,
    rewrites: Sequence[Rewrite],
    arguments: Sequence[torch.Tensor],
    swaps: Sequence[Swap] = (),
    *,
    rounding_of: Sequence[str] | None = None,
    valid: measured_rounding.ValidElements = measured_rounding.EVERYTHING,
) -> Recording:
    """Run a program in which new operators stand beside the original ones.

    Args:
        arguments: The user inputs, in order.
        swaps: What was inserted outside of the layers.
        rounding_of: Names of the outputs, to measure how far rounding moves the original, too.
        valid: What is compared and measured.
    """
    watched = {node for rewrite in rewrites for node in _watched(rewrite)}
    watched |= {node for swap in swaps for node in (swap.old, swap.new)}
    runner = _WatchingInterpreter(program, watched)
    inputs = _flat_inputs(program, arguments)
    with torch.no_grad():
        outputs = runner.run(*inputs)
    tensors = [leaf for leaf in torch.utils._pytree.tree_leaves(outputs) if torch.is_tensor(leaf)]
    values = runner.values
    rounding = None
    if rounding_of is not None:
        named = dict(zip(rounding_of, tensors, strict=False))
        rounding = measured_rounding.measure_rounding(
            program, inputs, rewrites, values, named, valid
        )
    layers: list[LayerRecord] = []
    for rewrite in rewrites:
        gates, selection = values[rewrite.gates], rewrite.router.selection
        # [B, S]; nothing is near a tie where nothing is ranked.
        margins = torch.full(gates.shape[:2], float("inf"))
        if selection is not None and rewrite.scores is not None:
            margins = _margins(rewrite.router, values[rewrite.scores], selection.top_k)
        counted = valid.of_node(rewrite.gates, gates)[..., 0]
        found = _disagreement(rewrite, values, valid)
        layers.append(
            LayerRecord(
                gates,
                margins,
                scores=measured_rounding.ranked_scores(rewrite, values, counted),
                attention=measured_rounding.attention_fingerprint(rewrite, values),
                disagreement=None if found is None else found.words,
                counted=counted,
            )
        )
    return Recording(
        outputs=tensors,
        layers=layers,
        disagreements=[_swapped(swap, values, valid) for swap in swaps],
        rounding=rounding,
    )


def _watched(rewrite: Rewrite) -> list[Node]:
    nodes = [rewrite.gates, rewrite.scores, rewrite.replacement, rewrite.routed]
    nodes += [rewrite.computed_gates, rewrite.attention_view, rewrite.fixed_gates]
    if rewrite.routed is not None and rewrite.router.selection is not None:
        nodes.append(rewrite.router.selection.scores)
    if rewrite.replacement is not None:
        nodes.append(rewrite.layer.node)
    nodes += [node for swap in rewrite.all_swaps for node in (swap.old, swap.new)]
    return [node for node in nodes if node is not None]


class _WatchingInterpreter(Interpreter):
    """Keeps the values of some nodes, and runs at sizes that the program's assertions exclude: what
    it computes there may be right all the same.
    """

    def __init__(self, program: ExportedProgram, watched: set[Node]) -> None:
        super().__init__(program.graph_module)
        self._watched = watched
        self.values: dict[Node, torch.Tensor] = {}

    def run_node(self, n: Node) -> object:
        if n.target is torch.ops.aten._assert_scalar.default:
            return None
        result = super().run_node(n)
        if n in self._watched:
            assert isinstance(result, torch.Tensor)
            self.values[n] = result
        return result


def _flat_inputs(program: ExportedProgram, arguments: Sequence[torch.Tensor]) -> list[object]:
    """Values of the graph's placeholders; parameters and constants come from the program."""
    remaining = iter(arguments)
    stored = {**program.constants, **program.state_dict}
    return [
        next(remaining) if spec.kind is InputKind.USER_INPUT else stored[str(spec.target)]
        for spec in program.graph_signature.input_specs
    ]


def _disagreement(
    rewrite: Rewrite, values: dict[Node, torch.Tensor], valid: measured_rounding.ValidElements
) -> LayerDifference | None:
    """Compare the new operators with the original ones, tokens with a near-tie left out."""
    # In the order in which they run: what comes first explains what follows.
    for swap in rewrite.swaps:
        found = _swapped(swap, values, valid)
        if found is not None:
            return found
    if rewrite.fixed_gates is not None:
        fixed, gates = values[rewrite.fixed_gates], values[rewrite.gates]
        every = torch.ones(gates.shape, dtype=torch.bool)
        found = _difference("the gates computed at export", fixed, gates, every)
        if found is not None:
            return found
    all_alike = True
    if rewrite.routed is not None:
        original = values[rewrite.computed_gates]
        # Tokens of [..., H] whose choice does not hang on rounding.
        decided, selection = (
            torch.ones(original.shape[:-1], dtype=torch.bool),
            rewrite.router.selection,
        )
        if selection is not None:
            ranked = values[selection.scores].movedim(selection.dim, -1)
            margins = _margins(rewrite.router, ranked, selection.top_k)
            near = tolerance_for(dtype_name(ranked.dtype)).near_tie
            decided = margins.reshape(decided.shape) > near
        counted = valid.of_node(rewrite.computed_gates, original)[..., 0]  # [...] of [..., H]
        same_heads = ((values[rewrite.routed] != 0) == (original != 0)).all(-1)
        all_alike = bool((decided | same_heads | ~counted).all())
        compared = (decided & counted)[..., None].expand(original.shape)
        found = _difference(op_names.ROUTER, values[rewrite.routed], original, compared)
        if found is not None:
            return found
    # A token that takes other heads near a tie has another attention: it proves nothing.
    if rewrite.replacement is None or rewrite.op is None or not all_alike:
        return None
    attention = Swap(rewrite.layer.node, rewrite.replacement, rewrite.op)
    found = _swapped(attention, values, valid)
    behind = rewrite.output_projection
    return found if found is not None or behind is None else _swapped(behind, values, valid)


def _swapped(
    swap: Swap, values: dict[Node, torch.Tensor], valid: measured_rounding.ValidElements
) -> LayerDifference | None:
    got, expected = values[swap.new], values[swap.old]
    return _difference(swap.what, got, expected, valid.of_node(swap.old, expected))


def _margins(router: Router, scores: torch.Tensor, top_k: int) -> torch.Tensor:
    """[...]: how far a choice among scores [..., candidates] is from another; 0 for NaN."""
    margins = router.form.margins(to_numpy(scores.float()), top_k)
    return torch.from_numpy(np.nan_to_num(margins, nan=0.0, posinf=np.inf))


def _difference(
    what: str, got: torch.Tensor, expected: torch.Tensor, counted: torch.Tensor
) -> LayerDifference | None:
    if got.shape != expected.shape:
        shapes = f"{tuple(got.shape)}, the original {tuple(expected.shape)}"
        return LayerDifference(f"{what} gives shape {shapes}")
    error, largest = distance(expected, got, counted)
    if math.isinf(error):
        return LayerDifference(f"{what} is not finite where the original is")
    if error > tolerance_for(dtype_name(expected.dtype)).limit(largest):
        found = f"{error:.3g} (largest value {largest:.3g})"
        return LayerDifference(f"{what} differs from the original by {found}", error)
    return None


def distance(
    expected: torch.Tensor, got: torch.Tensor, counted: torch.Tensor
) -> tuple[float, float]:
    """Return the largest difference and the largest value where the original is finite.

    The difference is inf where the other one is not finite there; both are 0 where nothing is.
    Masks are counted as `beside_masks` does.

    Args:
        counted: Which elements are compared: bool, of their shape.
    """
    compared = counted & expected.isfinite()
    if not bool(compared.all()):  # picking elements takes far longer than comparing them all
        expected, got = expected[compared], got[compared]
    exact, other = expected.double(), got.double()
    if not bool(other.isfinite().all()):
        return math.inf, 0.0
    if not exact.numel():
        return 0.0, 0.0
    # Masks of -1e9 would let every other value be off by thousands.
    error, largest = (other - exact).abs(), float(exact.abs().max())
    if largest > MASKS_BEYOND:
        errors, known = beside_masks(to_numpy(error).astype(np.float64), to_numpy(expected))
        return float(errors.max()), float(np.abs(known).max())
    return float(error.max()), largest
