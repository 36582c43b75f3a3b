"""Find the factor, sum and weights by which a router weighs the heads that it keeps.

Routers rank heads by one score and weigh those that they keep by the same or by another one:
softmax of the chosen, sigmoids divided by their sum, a bias that takes part in the ranking only.
A MoHRouter ranks, and ordinary operators weigh.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch

from moh_deploy.frontend.fx.graph import ancestors, example_shape, shape
from moh_deploy.frontend.recognize.routers.router import Finish, Logits, Router, Selection
from moh_deploy.frontend.recognize.routers.trial import RouterRun, Values, is_number
from moh_deploy.ops.routers import RouterForm


@dataclass(frozen=True)
class Weighing:
    """A run of a router, and the search for what weighs the heads that it keeps."""

    run: RouterRun  # what it made of random scores of several scales
    selection: Selection  # where it ranks the heads, and how many it keeps
    softmax_logits: list[Logits]  # what may be the logits of a softmax that it ranks
    shared: torch.Tensor  # [rows, Sh] float64, its gates of the shared heads
    gates: torch.Tensor  # [rows, R] float64, its gates of the routed heads

    @classmethod
    def of(cls, run: RouterRun, selection: Selection, logits: list[Logits]) -> Weighing:
        """Split what a router made of scores into the gates of its shared and of its routed heads.

        Args:
            logits: What may be the logits of a softmax that it ranks.
        """
        gates = torch.cat([_rows(values[run.gates]) for values in run.values])  # [rows, H]
        shared, routed = gates[:, : -selection.candidates], gates[:, -selection.candidates :]
        computed = [logit for logit in logits if logit.node in run.values[0]]
        return cls(run, selection, computed, shared.double(), routed.double())

    @property
    def has_one_shared_gate(self) -> bool:
        """Tell whether each shared head has one number as its gate, or no gate."""
        return bool((self.shared == self.shared[:1, :1]).all())

    @property
    def ranks_weights(self) -> bool:
        """Heads are ranked by their logits, or by what all their scores are made of."""
        return self._ranking in (*self._before_softmax, *self._scores[:1])

    def of_ranking(self, form: RouterForm) -> Router | None:
        """Return a mask of the best heads and what weighs them; None where nothing does."""
        # What is nearest to the gates first: a sigmoid, not the logits that it is of.
        for weights in (*reversed(self._scores), None):
            router = self.router(form, self._ranking, weights=weights)
            if router is not None:
                return router
        return None

    def router(
        self,
        form: RouterForm,
        logits: Logits,
        *,
        gate_mode: Literal["weighted", "mask"] = "mask",
        weights: Logits | None = None,
    ) -> Router | None:
        """Return a MoHRouter of these logits and what brings its gates, times the weights, to those
        of the model; None where no factor and no sum does."""
        kept = torch.cat(
            [_router_gates(v, logits, self.selection, gate_mode) for v in self.run.values]
        )
        if weights is not None:
            kept = kept * self._rows_of(weights)
        if kept.shape != self.gates.shape:
            return None  # one choice for all tokens of a sequence
        finish = self._finish(weights, kept, self.gates)
        if self.has_one_shared_gate:
            shared_gate = float(self.shared[0, 0]) if self.shared.numel() else 1.0
            finish = finish and replace(finish, shared_gate=shared_gate)
        else:
            # Shared heads are weighed, too.
            routed, shared = finish or self._scaled_finish(weights, kept), self._shared_finish
            finish = self._joint_finish(weights, kept)
            if routed is not None and shared is not None:
                finish = replace(routed, shared=shared)
        if finish is None:
            return None
        return Router(
            form=form,
            num_shared_heads=self.shared.shape[-1],
            top_k=self.selection.top_k,
            selection=replace(self.selection, scores=logits.node, dim=logits.dim),
            routed_logits=logits,
            gate_mode=gate_mode,
            finish=finish,
        )

    def _joint_finish(self, weights: Logits | None, kept: torch.Tensor) -> Finish | None:
        """The finish where shared and routed gates are divided by the sum of both."""
        given = torch.cat((self.shared, self.gates), -1)
        for shared, rows in self._unchanged(self.shared.shape[-1]):
            # Whatever the sum is, both kinds are divided by it: how many times the routed ones were
            # taken is left over.
            taken = self.gates[0].sum() / kept[0].sum() * rows[0].sum() / self.shared[0].sum()
            factor = _as_written(float(taken), self.run.tolerance)
            found = self._finish(shared, torch.cat((rows, factor * kept), -1), given)
            if found is not None and found.normalized:
                joint = replace(found, weights=None)
                return Finish(weights, factor=factor, shared=Finish(shared), joint=joint)
        return None

    @cached_property
    def _shared_finish(self) -> Finish | None:
        """What makes the gates of shared heads of a tensor that the choice does not change."""
        for weights, rows in self._unchanged(self.shared.shape[-1]):
            finish = self._finish(weights, rows, self.shared)
            if finish is not None:
                return finish
        return None

    def _scaled_finish(self, weights: Logits | None, kept: torch.Tensor) -> Finish | None:
        """What brings the weighed gates [rows, R] to those of the model, where a tensor has a
        number for each token that they are multiplied with: the weight of a first stage."""
        total, given = kept.sum(-1, keepdim=True), self.gates.sum(-1, keepdim=True)
        scales = given / total  # [rows, 1]
        if not self._are_close(self.gates, scales * kept):
            return None
        for scale, rows in self._unchanged(1):
            for normalized, wanted in ((False, scales), (True, given)):
                finish = self._finish(scale, rows, wanted)
                if finish is not None and not finish.normalized:
                    return Finish(weights, normalized, factor=finish.factor, scale=scale)
        return None

    def _finish(
        self, weights: Logits | None, kept: torch.Tensor, gates: torch.Tensor
    ) -> Finish | None:
        """Find what brings weighed gates [rows, R] to those of the model; None if nothing does."""
        if kept.shape != gates.shape or not bool(kept.isfinite().all()):
            return None
        for finish in self._finishes(weights, kept, gates):
            divisor = kept.sum(-1, keepdim=True) + finish.epsilon if finish.normalized else 1.0
            if finish.factor and self._are_close(gates, finish.factor * kept / divisor):
                return finish
        return None

    def _are_close(self, gates: torch.Tensor, made: torch.Tensor) -> bool:
        limit = self.run.tolerance * max(1.0, float(gates.abs().max()))
        return bool(((gates - made).abs() <= limit).all())

    def _finishes(
        self, weights: Logits | None, kept: torch.Tensor, gates: torch.Tensor
    ) -> Iterator[Finish]:
        """Every way to scale the gates that agrees with them somewhere."""
        tolerance = self.run.tolerance
        # The largest gate has the smallest relative rounding: the factor is read there.
        largest = int(kept.abs().argmax())
        factor = float(gates.flatten()[largest] / kept.flatten()[largest])
        yield Finish(weights, factor=_as_written(factor, tolerance))
        if weights is None:
            return
        # Divided by a sum, the gates of every token add up to the factor. With an epsilon they add
        # up to less the smaller the sum is, so the tokens with the smallest and largest sums tell
        # both.
        totals = torch.stack((kept.sum(-1), gates.sum(-1)))  # [2, rows]
        order = totals[0].abs().argsort()
        (small, given), (large, expected) = (totals[:, order[end]].tolist() for end in (0, -1))
        yield Finish(weights, normalized=True, factor=_as_written(expected, tolerance))
        if 0 in (small, given, large, expected) or 1 / small == 1 / large:
            return
        # expected = factor * large / (large + epsilon), and the same for the smallest sum
        slope = (1 / given - 1 / expected) / (1 / small - 1 / large)
        inverse = 1 / expected - slope / large
        if inverse:
            factor, epsilon = _as_written(1 / inverse, tolerance), float(f"{slope / inverse:.6g}")
            yield Finish(weights, normalized=True, factor=factor, epsilon=epsilon)

    def _unchanged(self, count: int) -> Iterator[tuple[Logits, torch.Tensor]]:
        """Yield tensors of so many numbers for each token that the choice does not change, nearest
        to the gates first, and their values [rows, count] in float64."""
        for node in reversed(self.run.nodes):
            if not is_number(node) or self.selection.node in ancestors(node):
                continue
            for dim, extent in reversed(list(enumerate(example_shape(node)))):
                rows = self._rows_of(Logits(node, dim)) if extent == count else None
                if rows is not None and len(rows) == len(self.gates):
                    yield Logits(node, dim), rows

    def _rows_of(self, logits: Logits) -> torch.Tensor:
        """[rows, R] float64: the values of logits in the run."""
        return torch.cat([_rows(logits.of(values)) for values in self.run.values]).double()

    @cached_property
    def _ranking(self) -> Logits:
        """The scores that are ranked, or what they rank like: logits tell heads apart that all have
        a sigmoid of 0, or nearly so."""
        alike = filter(self._ranks_alike, (*self._before_softmax, *self._scores))
        return next(alike, self._ranked)

    @property
    def _ranked(self) -> Logits:
        return Logits(self.selection.scores, self.selection.dim)

    @property
    def _before_softmax(self) -> list[Logits]:
        return [logits for logits in self.softmax_logits if logits != self._ranked]

    @cached_property
    def _scores(self) -> list[Logits]:
        """Tensors as large as the ranked scores that are computed before heads are chosen."""
        return [
            Logits(node, self.selection.dim)
            for node in self.run.nodes
            if is_number(node)
            and shape(node) == shape(self.selection.scores)
            and self.selection.node not in ancestors(node)
        ]

    def _ranks_alike(self, logits: Logits) -> bool:
        """The same heads are chosen, there are no two of one rank, as in a mask, and the ranked
        scores of all heads, chosen or not, rise with these."""
        for values in self.run.values:
            ordered = logits.of(values).sort(-1).values
            if bool((ordered[..., 1:] == ordered[..., :-1]).any()):
                return False
            first, second = (
                _router_gates(values, logit, self.selection, "mask")
                for logit in (logits, self._ranked)
            )
            if not torch.equal(first, second):
                return False
        # Where scores are rounded, they may be equal though the logits are not, or fall by a step.
        step = min(self.run.tolerance, _ROUNDING)
        for values in (*self.run.values, self.run.close):
            order = logits.of(values).argsort(-1)
            if bool((self._ranked.of(values).gather(-1, order).diff(dim=-1) < -step).any()):
                return False
        return True


def _router_gates(
    values: Values, logits: Logits, selection: Selection, gate_mode: str
) -> torch.Tensor:
    """[rows, R] float64: the gates that a MoHRouter makes of logits."""
    rows = _rows(logits.of(values))[None]  # [1, rows, R], as a MoHRouter takes them
    gates: torch.Tensor = torch.ops.moh.router.default(
        rows, None, None, selection.top_k, 0, gate_mode
    )
    return gates[0].double()


_ROUNDING = 2.0**-21
"""What a ratio of two gates in float32 may be off by: four steps."""


def _as_written(number: float, tolerance: float) -> float:
    """Return the short number, or one over it, that this is within rounding; or the number itself.

    0.33333334 is 1 / 3, as of gates that are shared out by their mean, and not 0.333333.
    """
    short, inverse = float(f"{number:.6g}"), float(f"{1 / number:.6g}") if number else 0.0
    near = min(short, 1 / inverse if inverse else short, key=lambda item: abs(item - number))
    return near if abs(near - number) < min(tolerance, _ROUNDING) * abs(number) else number


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1, tensor.shape[-1])
