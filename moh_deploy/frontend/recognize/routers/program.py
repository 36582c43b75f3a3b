"""A layer's router as a program, and the questions that the matcher of a form may ask of it."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch.fx import Node

from moh_deploy.frontend.fx.graph import ancestors, argument, example_shape, op, rank, tensor
from moh_deploy.frontend.fx.known_values import Constants
from moh_deploy.frontend.fx.views import through_views
from moh_deploy.frontend.recognize.routers import router, trial
from moh_deploy.frontend.recognize.routers.weighing import Weighing
from moh_deploy.frontend.recognize.walk import walk
from moh_deploy.ops.routers import RouterForm


@dataclass(frozen=True)
class RouterProgram:
    """The part of a program that computes the gates of one layer.

    It may be written in any way: a matcher proposes what it could compute, by the sizes of what it
    takes a softmax of, and proves it by running both on the same logits.
    """

    gates: Node  # what it computes, [..., H]
    # The attention's query, to tell a router that reads it; None where it is not known.
    query: Node | None
    constant: Constants

    @cached_property
    def num_heads(self) -> int:
        """Heads that have a gate."""
        return example_shape(self.gates)[-1]

    @cached_property
    def selection(self) -> router.Selection | None:
        """The ranking of its heads, as it is written; None where it ranks none."""
        return router.find_selection(self._cone, self.num_heads)

    @cached_property
    def softmax_logits(self) -> list[router.Logits]:
        """The logits that it takes a softmax of: of its stages, its shared and its routed heads."""
        return [_logits_of(node) for node in self._softmaxes]

    @cached_property
    def run(self) -> trial.RouterRun | None:
        """A run on random scores; None where it ranks none or cannot be run on its own."""
        if self.selection is None:
            return None
        return trial.run_router(self.gates, self._cone, self.selection.scores, self.constant)

    @cached_property
    def counted(self) -> router.Selection | None:
        """The selection with as many heads as are open in a run: noisy top-k gating looks at one
        more than it keeps."""
        if self.selection is None or self.run is None:
            return self.selection
        kept = self.run.kept(self.selection.candidates, self.selection.top_k)
        return replace(self.selection, top_k=kept)

    @cached_property
    def weighing(self) -> Weighing | None:
        """The search for what weighs the heads that it keeps; None where that cannot be told."""
        if self.run is None or self.counted is None:
            return None
        return Weighing.of(self.run, self.counted, list(self._ranked_logits(self.counted)))

    def routed(self, form: RouterForm) -> Iterator[tuple[router.Router, list[router.Logits]]]:
        """Yield MoHRouters of routed heads, and with each what may be its other logits: whatever
        else the router takes a softmax of."""
        if self.selection is None:
            return
        for routed in self._ranked_logits(self.selection):
            base = router.Router(
                form=form,
                num_shared_heads=self.num_heads - self.selection.candidates,
                top_k=self.selection.top_k,
                selection=self.selection,
                routed_logits=routed,
            )
            # A softmax that reads the routed logits is that of the routed heads themselves.
            others = [node for node in self._softmaxes if routed.node not in ancestors(node)]
            yield base, [_logits_of(node) for node in others]

    def proven(self, proposals: Iterable[router.Router]) -> router.Router | None:
        """Return the first proposal that computes the same gates from the same logits."""
        return next((proposal for proposal in proposals if self._computes(proposal)), None)

    def reads_query(self, logits: router.Logits | None) -> bool:
        """Tell whether logits are made of the projection that the query is made of."""
        if self.query is None or logits is None:
            return False
        return bool(_projections(logits.node) & _projections(self.query))

    def is_finite_for_nan(self, logits: router.Logits) -> bool:
        """Tell whether gates are numbers for tokens whose logits are NaN: those of a mask are, and
        a quotient by a sum is not."""
        between = trial.nodes_between(self.gates, {logits.node}, set(self._cone), self.constant)
        nan = torch.full(example_shape(logits.node), math.nan)
        run = (
            None if between is None else trial.run_nodes(between, {logits.node: nan}, self.constant)
        )
        return run is not None and bool(run[self.gates].isfinite().all())

    @cached_property
    def _cone(self) -> list[Node]:
        return router.router_cone(self.gates)

    @cached_property
    def _softmaxes(self) -> list[Node]:
        return [node for node in self._cone if op(node) == "softmax"]

    def _ranked_logits(self, selection: router.Selection) -> Iterator[router.Logits]:
        """Candidates for the routed logits: what is ranked, or what that is a softmax of."""
        ranked = through_views(selection.scores)
        if ranked in self._softmaxes:
            yield _logits_of(ranked)
        yield router.Logits(selection.scores, selection.dim)

    def _computes(self, proposal: router.Router) -> bool:
        """Run the model's own router and the proposal on random logits and compare."""
        # Where the gates depend on anything but these logits, the proposal cannot be all of it.
        inputs = [logits.node for logits in proposal.logits if logits is not None]
        between = trial.nodes_between(self.gates, set(inputs), set(self._cone), self.constant)
        if between is None:
            return False
        runs, is_exact = trial.run_part(inputs, between, self.constant)
        # Below what the gates' dtype can show of a gate of 1: the 1e-9 that is added to a sum
        # before it divides.
        wide = tensor(self.gates).dtype == torch.float64
        limit = (1e-9 if wide else torch.finfo(torch.float32).eps) if is_exact else 1e-5
        return bool(runs) and max(_error(proposal, self.gates, run) for run in runs) <= limit


def extent(logits: router.Logits) -> int:
    """Return for how many heads, or stages, there are logits."""
    return example_shape(logits.node)[logits.dim]


def _logits_of(softmax: Node) -> router.Logits:
    source, dim = softmax.args[0], argument(softmax, "dim", -1)
    assert isinstance(source, Node)
    assert isinstance(dim, int)
    return router.Logits(source, dim % rank(source))


def _projections(node: Node) -> set[Node]:
    """The nearest products with weights that a tensor is computed from."""
    cone = walk(node, lambda node: () if router.is_projection(node) else node.all_input_nodes)
    return {current for current in cone if router.is_projection(current)}


def _error(proposal: router.Router, gates: Node, values: trial.Values) -> float:
    """Largest difference between the gates that the model's router made of logits and the
    proposal's; infinite where they open other heads."""
    # A row is a token. Logits may be [tokens, R] or [R, B, S], but of as many tokens as the gates.
    expected = values[gates]
    tokens = expected.shape[:-1]
    given = [None if logits is None else logits.of(values) for logits in proposal.logits]
    if any(logits is not None and logits.shape[:-1].numel() != tokens.numel() for logits in given):
        return math.inf
    computed = torch.ops.moh.router.default(
        *(None if logits is None else logits.reshape(*tokens, -1) for logits in given),
        proposal.top_k,
        proposal.num_shared_heads,
        proposal.gate_mode,
    )
    # Which heads are open is compared exactly: a gate of 1e-10 is not 0.
    if expected.shape != computed.shape or not torch.equal(expected != 0, computed != 0):
        return math.inf
    return float((expected.double() - computed.double()).abs().max())
