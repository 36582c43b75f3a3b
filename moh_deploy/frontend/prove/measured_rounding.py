"""Measure how far rounding moves the original."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import Interpreter, Node
from torch.utils._pytree import tree_leaves, tree_map

from moh_deploy import package
from moh_deploy.frontend.fx.arrays import to_numpy
from moh_deploy.frontend.fx.graph import ancestors, hint, op
from moh_deploy.frontend.prove.valid_elements import EVERYTHING, ValidElements
from moh_deploy.frontend.recognize.routers.router import router_cone
from moh_deploy.frontend.rewrite import Rewrite
from moh_deploy.system.npz import Array

# The original operators are run with noise of the size of rounding behind each of them. What moves
# in such runs is what rounding can move: another order of summation, another exponential, another
# instruction set. (Monte Carlo arithmetic; Parker, "Monte Carlo Arithmetic", UCLA 1997.) The gates
# of the original are fed to every layer, since a token that takes another head near a tie would
# tell of that tie, and not of rounding.


@dataclass(frozen=True)
class NoisyRun:
    """The values that a run with noise computed."""

    values: Mapping[Node, torch.Tensor]
    outputs: Sequence[torch.Tensor]


def noisy_runs(
    program: ExportedProgram,
    placeholders: Sequence[object],
    *,
    watched: Collection[Node],
    fed: Mapping[Node, torch.Tensor],
    draws: int,
) -> Iterator[NoisyRun]:
    """Run the program, each time with other noise; the same in every call.

    Args:
        placeholders: The values of the program's placeholders, in order.
        watched: The nodes whose values are wanted. Only what they and the outputs need is run.
        fed: What readers of a node are given in place of what it computes.
    """
    output = next(node for node in program.graph.nodes if node.op == "output")
    needed = set(ancestors(output, *watched))
    for draw in range(draws):
        runner = _NoisyInterpreter(program, needed, watched, fed, seed=draw)
        with torch.no_grad():
            outputs = runner.run(*placeholders)
        tensors = [leaf for leaf in tree_leaves(outputs) if torch.is_tensor(leaf)]
        yield NoisyRun(runner.values, tensors)


class _NoisyInterpreter(Interpreter):
    """Moves what each operator computes by up to one step of its dtype, and long sums further."""

    def __init__(
        self,
        program: ExportedProgram,
        needed: set[Node],
        watched: Collection[Node],
        fed: Mapping[Node, torch.Tensor],
        *,
        seed: int,
    ) -> None:
        super().__init__(program.graph_module)
        self._needed, self._watched, self._fed = needed, watched, fed
        self._generator = torch.Generator().manual_seed(seed)
        self._computed: dict[Node, object] = {}
        self.values: dict[Node, torch.Tensor] = {}

    def run_node(self, n: Node) -> object:
        if n not in self._needed and n.op != "placeholder":  # inserted beside the original
            return None
        if n.op == "output":  # gates that the model returns are shown as they were computed
            self.env.update(self._computed)
        result = super().run_node(n)
        # A view computes nothing: its result is (perhaps) memory of an argument. No operator of
        # torch are getitem, and arithmetic on sizes.
        returns = n.target._schema.returns if isinstance(n.target, OpOverload) else ()
        is_view = not returns or any(r.alias_info for r in returns)
        if not is_view and op(n) not in _PICKS:
            terms = sum_length(n)
            result = tree_map(lambda value: self._moved(value, terms), result)
        if n in self._watched:
            assert isinstance(result, torch.Tensor)
            self.values[n] = result
        if n not in self._fed:
            return result
        self._computed[n] = result
        return self._fed[n]

    def _moved(self, value: object, terms: int) -> object:
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            return value
        exact = value.to(torch.promote_types(value.dtype, torch.float32))
        step, size = torch.finfo(value.dtype).eps, exact
        # Looking at the sum costs a tenth of looking at each element.
        is_finite = math.isfinite(exact.sum())
        if terms > _FEW_TERMS and value.ndim:
            # The sum may be small where its terms are not.
            size = exact if is_finite else exact.nan_to_num(0, 0, 0)
            size = torch.linalg.vector_norm(size, dim=-1, keepdim=True)
            step *= math.sqrt(terms / _FEW_TERMS / max(1, value.shape[-1]))
        shares = self._shares(exact)
        moved = torch.addcmul(exact, size, shares, value=step, out=shares)
        if not math.isfinite(moved.sum()):
            # Infinities, which masks are made of, stay, and the lowest number becomes none: a mask
            # that is multiplied with 0 would be NaN.
            moved = torch.where(moved.isfinite(), moved, exact)
        return moved.to(value.dtype)

    def _shares(self, value: torch.Tensor) -> torch.Tensor:
        """Return numbers between -1 and 1, spread evenly, of the shape of a value.

        One of 256 numbers each, so that eight are one draw: a draw for each took longer than the
        operators did.
        """
        draws = torch.empty(-(-value.numel() // 8), dtype=torch.int64)
        draws.random_(torch.iinfo(torch.int64).min, None, generator=self._generator)
        numbers = draws.view(torch.int8)[: value.numel()].view(value.shape)  # -128 to 127
        # Laid out as the value is: what reads the sum of both may view it.
        return torch.empty_like(value).copy_(numbers).add_(0.5).div_(128)


_PICKS = frozenset(("topk", "sort", "kthvalue", "max", "min", "amax", "amin", "gather"))
"""Operators that pick elements round nothing. With noise of its own, the k-th best score would no
longer be among the scores that a router compares it with, and would close the last head."""

_FEW_TERMS = 64
"""Sums of more terms than this are further off than a step: the error of adding terms one after the
other, as products of matrices do, grows with the square root of their number (Higham, "Accuracy and
Stability of Numerical Algorithms", 2002, section 4.2). Packages of models 32 to 1024 wide were as
many times their floor away with it."""

_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "convolution")


def sum_length(node: Node) -> int:
    """Return how many terms each element of a product is the sum of; 1 for other operators."""
    shapes = [
        tuple(map(hint, source.meta["val"].shape))
        for source in node.all_input_nodes
        if isinstance(source.meta.get("val"), torch.Tensor)
    ]
    name = op(node)
    if name in ("mm", "bmm", "matmul"):
        return shapes[0][-1]
    if name in ("linear", "addmm", "baddbmm"):  # with the weight second, or behind a bias
        return shapes[min(1, len(shapes) - 1)][-1]  # of `linear(x, x)`, both are one node
    if name in _CONVOLUTIONS:
        return math.prod(shapes[1][1:])
    if name == "scaled_dot_product_attention":  # over the head dimension, then over the keys
        return max(shapes[-1][-2:] if len(shapes) < 3 else shapes[2][-2:])
    if name == "einsum":
        return max(max(shape[-2:], default=1) for shape in shapes)
    return 1


def attention_fingerprint(
    rewrite: Rewrite, values: Mapping[Node, torch.Tensor]
) -> NDArray[np.float32] | None:
    """Return the fingerprint of what the layer's attention computed, gates included.

    Returns:
        [B, S, NUMBERS]; None where the gated heads have no view [B, S, ...].
    """
    if rewrite.attention_view is None:
        return None
    return package.fingerprint(to_numpy(values[rewrite.attention_view].double()))


def ranked_scores(
    rewrite: Rewrite, values: Mapping[Node, torch.Tensor], counted: torch.Tensor
) -> Array | None:
    """Return what the layer's router ranked, [B, S, candidates] in float32: of the last heads.

    Args:
        counted: [B, S], the tokens that are compared.

    Returns:
        None where nothing is ranked, or the heads that are open are not the best of the last ones:
        another rule takes part in the choice.
    """
    selection = rewrite.router.selection
    if selection is None or rewrite.scores is None:
        return None
    scores, gates = values[rewrite.scores].float(), values[rewrite.gates]
    candidates = scores.shape[-1]
    if not scores.numel() or scores.shape[:-1] != gates.shape[:-1] or candidates > gates.shape[-1]:
        return None
    is_open = gates[..., -candidates:] != 0
    known = are_the_best(scores[counted], is_open[counted], selection.top_k)
    return to_numpy(scores) if known else None


def are_the_best(scores: torch.Tensor, is_open: torch.Tensor, top_k: int) -> bool:
    """Tell whether every open head has a score as high as that of the last chosen one."""
    if bool(scores.isnan().any()):
        return False
    last_chosen = scores.topk(top_k, dim=-1).values[..., -1:]
    is_best = (scores >= last_chosen) | ~is_open
    # A chosen head whose gate is 0 looks closed; more open heads than are chosen have another rule.
    return bool(is_best.all()) and bool((is_open.sum(dim=-1) <= top_k).all())


_DRAWS = 3
"""Rounding that all of a model hangs on (of the frequencies of a timestep, say) is one number or a
few: one draw of it may be small by luck."""


def measure_rounding(
    program: ExportedProgram,
    placeholders: Sequence[object],
    rewrites: Sequence[Rewrite],
    values: Mapping[Node, torch.Tensor],
    outputs: Mapping[str, torch.Tensor],
    valid: ValidElements = EVERYTHING,
) -> package.Rounding:
    """Run the original operators with noise, and compare.

    Args:
        program: The original operators; what is inserted beside them is not run.
        values: What the original operators computed, by node.
        valid: What of all values counts.
    """
    watched = {
        node
        for rewrite in rewrites
        for node in (rewrite.scores, rewrite.computed_gates, rewrite.attention_view)
        if node is not None
    }
    fed = {rewrite.computed_gates: values[rewrite.computed_gates] for rewrite in rewrites}
    runs = list(noisy_runs(program, placeholders, watched=watched, fed=fed, draws=_DRAWS))
    found: dict[str, package.Spread] = {}
    for index, (name, tensor) in enumerate(outputs.items()):
        if tensor.is_floating_point():
            counted = valid.of_output(name, tensor)
            noisy = [run.outputs[index][counted] for run in runs]
            # How far noise moves what counts of an output, as shares of its size.
            moved, size = map(package.spread, _moves(tensor[counted].double(), noisy))
            pairs = ((moved.rms, size.rms), (moved.largest, size.largest))
            found[name] = package.Spread(
                *(error / value if value else 0.0 for error, value in pairs)
            )
    layers = tuple(_layer(rewrite, values, runs, valid) for rewrite in rewrites)
    return package.Rounding(outputs=found, layers=layers)


def divides_by_deviation(rewrite: Rewrite) -> bool:
    """Tell whether a router divides by the deviation of its heads, as that of MoH-LLaMA3 does.

    Where the heads of a token are nearly equal, rounding moves its scores by a thousand times more
    than those of other tokens. The example may have no such token, and another run some.
    """
    return any(op(node) in ("std", "var") for node in router_cone(rewrite.computed_gates))


def of_all_runs(roundings: Sequence[package.Rounding | None]) -> package.Rounding | None:
    """Return the rounding of the first run, with the largest of scores and gates in any run.

    Args:
        roundings: Of each run; None where it was not measured.
    """
    if roundings[0] is None:
        return None

    def largest(spreads: Sequence[package.Spread]) -> package.Spread:
        return package.Spread(max(s.rms for s in spreads), max(s.largest for s in spreads))

    layers = []
    for found in zip(*(known.layers for known in roundings if known is not None), strict=True):
        scores = [layer.scores for layer in found if layer.scores is not None]
        gates = largest([layer.gates for layer in found])
        layers.append(replace(found[0], scores=largest(scores) if scores else None, gates=gates))
    return replace(roundings[0], layers=tuple(layers))


def _layer(
    rewrite: Rewrite,
    values: Mapping[Node, torch.Tensor],
    runs: Sequence[NoisyRun],
    valid: ValidElements,
) -> package.LayerRounding:
    scores, gates = rewrite.scores, rewrite.computed_gates
    chosen = to_numpy((values[gates] != 0) & valid.of_node(gates, values[gates]))
    exact = attention_fingerprint(rewrite, values)
    attention = None
    if exact is not None:
        found = [attention_fingerprint(rewrite, run.values) for run in runs]
        moved = np.stack([array - exact for array in found if array is not None])
        # [B, S] of [B, S, H]
        tokens = to_numpy(valid.of_node(rewrite.gates, values[rewrite.gates])[..., 0])
        attention = package.fingerprint_spread(_finite(moved[:, tokens]), _finite(exact[tokens]))
    return package.LayerRounding(
        scores=None
        if scores is None
        else package.spread(
            _moved(scores, values, runs)[:, to_numpy(valid.of_node(scores, values[scores]))]
        ),
        gates=package.spread(_moved(gates, values, runs)[:, chosen]),
        attention=attention,
    )


def _moved(node: Node, values: Mapping[Node, torch.Tensor], runs: Sequence[NoisyRun]) -> Array:
    """Return [runs, ...]: by how much each run moved a value."""
    exact = values[node].double()
    return _moves(exact, [run.values[node] for run in runs])[0]


def _finite(values: Array) -> NDArray[np.float64]:
    """Padding may be NaN, which says nothing about rounding."""
    return np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)


def _moves(exact: torch.Tensor, noisy: Sequence[torch.Tensor]) -> tuple[Array, Array]:
    """Return [runs, ...], how far noise moves a value, and its size: see `beside_masks`."""
    moved = _finite(np.stack([to_numpy(run.double() - exact) for run in noisy]))
    return package.beside_masks(moved, to_numpy(exact))
