"""Routers that keep the best heads and weigh them in a way of their own.

They rank the heads by one score and weigh those that they keep by the same or by another one:
softmax of the chosen, sigmoids divided by their sum, a bias that takes part in the ranking only.
A MoHRouter ranks, and ordinary operators weigh.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch.fx import Node

from moh_deploy.frontend.fx.graph import ancestors, shape
from moh_deploy.frontend.recognize.routers.router import Finish, Logits, Router
from moh_deploy.frontend.recognize.routers.selection import Selection
from moh_deploy.frontend.recognize.routers.trial import RouterRun, Values, is_number


@dataclass(frozen=True)
class _Proposal:
    """A MoHRouter of these logits, and what weighs the heads that it keeps."""

    form: str
    logits: Logits
    gate_mode: Literal["weighted", "mask"] = "mask"
    weights: Logits | None = None

    def kept(self, run: RouterRun, top_k: int) -> torch.Tensor:
        """[rows, R] float64: the weighed gates for logits of all scales."""
        return torch.cat([self._of(values, top_k).double() for values in run.values])

    def _of(self, values: Values, top_k: int) -> torch.Tensor:
        logits = self.logits.of(values)
        logits = logits.reshape(1, -1, logits.shape[-1])  # [1, rows, R], as a MoHRouter takes them
        gates: torch.Tensor = torch.ops.moh.router.default(
            logits, None, None, top_k, 0, self.gate_mode
        )[0]
        return gates if self.weights is None else gates * self.weights.of(values).reshape_as(gates)


def read_ranked(run: RouterRun, selection: Selection, logits: Sequence[Logits]) -> Router | None:
    """Return the router as a MoHRouter and what is made of its gates; None where it is none.

    Args:
        run: What the router made of some logits.
        selection: Where it ranks the heads, and how many it keeps.
        logits: What may be the logits of a softmax that it ranks.
    """
    gates = torch.cat([_rows(values[run.gates]) for values in run.values])  # [rows, H]
    shared, routed = gates[:, : -selection.candidates], gates[:, -selection.candidates :]
    if bool((shared != shared[:1, :1]).any()):
        return None
    top_k = selection.top_k
    for one in _proposals(run, selection, logits):
        finish = _finish(one.weights, one.kept(run, top_k), routed, run.tolerance)
        if finish is not None:
            return Router(
                form=one.form,
                num_shared_heads=shared.shape[-1],
                top_k=top_k,
                selection=replace(selection, scores=one.logits.node, dim=one.logits.dim),
                routed_logits=one.logits,
                gate_mode=one.gate_mode,
                finish=replace(finish, shared_gate=float(shared.max()) if shared.numel() else 1.0),
            )
    return None


def _proposals(
    run: RouterRun, selection: Selection, logits: Sequence[Logits]
) -> Iterator[_Proposal]:
    logits = [one for one in logits if one.node in run.values[0]]
    for one in logits:
        yield _Proposal("top_k", one, "weighted")
    candidates = [Logits(node, selection.dim) for node in _scores(run, selection)]
    scores = Logits(selection.scores, selection.dim)
    softmaxed = [one for one in logits if one != scores]
    # Logits tell heads apart that all have a sigmoid of 0, or nearly so.
    same = (one for one in (*softmaxed, *candidates) if _ranks_alike(run, one, scores, selection))
    ranking = next(same, scores)
    form = "ranked" if ranking in (*softmaxed, *candidates[:1]) else "scored"
    for weights in reversed(candidates):  # what is nearest to the gates
        yield _Proposal(form, ranking, weights=weights)
    yield _Proposal(form, ranking)


def _scores(run: RouterRun, selection: Selection) -> list[Node]:
    """What is as large as the ranked scores and computed before heads are chosen."""
    return [
        node
        for node in run.nodes
        if is_number(node)
        and shape(node) == shape(selection.scores)
        and selection.node not in ancestors(node, stop=set())
    ]


def _ranks_alike(run: RouterRun, one: Logits, other: Logits, selection: Selection) -> bool:
    """The same heads are chosen, and there are no two of one rank, as in a mask."""
    for values in run.values:
        ordered = one.of(values).sort(-1).values
        if bool((ordered[..., 1:] == ordered[..., :-1]).any()):
            return False
    first, second = (_Proposal("", logits).kept(run, selection.top_k) for logits in (one, other))
    return torch.equal(first, second)


def _finish(
    weights: Logits | None, kept: torch.Tensor, gates: torch.Tensor, tolerance: float
) -> Finish | None:
    """What brings the weighed gates to those of the model; None if nothing does.

    Args:
        kept, gates: [rows, R].
    """
    if kept.shape != gates.shape or not bool(kept.isfinite().all()):
        return None
    gates = gates.double()
    limit = tolerance * max(1.0, float(gates.abs().max()))
    for finish in _finishes(weights, kept, gates, tolerance):
        divisor = kept.sum(-1, keepdim=True) + finish.epsilon if finish.normalized else 1.0
        error = (gates - finish.factor * kept / divisor).abs().max()
        if finish.factor and bool(error <= limit):
            return finish
    return None


def _finishes(
    weights: Logits | None, kept: torch.Tensor, gates: torch.Tensor, tolerance: float
) -> Iterator[Finish]:
    """Every way to scale the gates that agrees with them somewhere."""
    largest = int(kept.abs().argmax())
    factor = float(gates.flatten()[largest] / kept.flatten()[largest])
    yield Finish(weights, factor=_as_written(factor, tolerance))
    if weights is None:
        return
    totals = torch.stack((kept.sum(-1), gates.sum(-1)))  # [2, rows]
    order = totals[0].abs().argsort()
    (small, given), (large, expected) = (totals[:, order[end]].tolist() for end in (0, -1))
    yield Finish(weights, normalized=True, factor=_as_written(expected, tolerance))
    if 0 in (small, given, large, expected) or small == large:
        return
    # expected = factor * large / (large + epsilon), and the same for the smallest sum
    slope = (1 / given - 1 / expected) / (1 / small - 1 / large)
    inverse = 1 / expected - slope / large
    if inverse:
        factor, epsilon = _as_written(1 / inverse, tolerance), float(f"{slope / inverse:.6g}")
        yield Finish(weights, normalized=True, factor=factor, epsilon=epsilon)


def _as_written(number: float, tolerance: float) -> float:
    """The short number that this is within rounding, or the number itself."""
    short = float(f"{number:.6g}")
    return short if abs(short - number) < tolerance * abs(number) else number


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1, tensor.shape[-1])
