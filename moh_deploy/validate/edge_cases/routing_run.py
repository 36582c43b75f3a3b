"""Run a package with edge-case logits in front of its routers, and judge every layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import onnx
from numpy.typing import NDArray

from moh_deploy.errors import BackendError
from moh_deploy.graph.layer_reads import RouterLogits, force_logits
from moh_deploy.ops.routers import form_named
from moh_deploy.package import LayerInfo
from moh_deploy.package.graph_nodes import lost_at
from moh_deploy.runtime.base import Runner
from moh_deploy.system.npz import Array, BoolArray
from moh_deploy.system.progress import Progress
from moh_deploy.validate.compare.tolerances import Tolerance
from moh_deploy.validate.edge_cases.routing_judge import (
    GateJudge,
    PortArrays,
    nan_attention_problem,
    nan_output_problem,
    read_problem,
    router_reference,
    tokens_with_nan,
    values_mismatch,
)
from moh_deploy.validate.edge_cases.source import MODEL, CaseResult, CaseStatus, RoutedLayer, Sides

# The logits on which implementations of routers go wrong.

_Logits = NDArray[np.float64]


@dataclass(frozen=True)
class RoutingState:
    """Logits that routers are given.

    Attributes:
        name: What reports call it.
        logits: Makes [B, S, N] for N heads, or for the two stages, from a generator.
    """

    name: str
    logits: Callable[[np.random.Generator, tuple[int, ...]], _Logits]

    def build(self, shape: tuple[int, ...]) -> _Logits:
        """Return the same logits at each call, rounded to no dtype."""
        return self.logits(np.random.default_rng(0), shape)


def clear(rng: np.random.Generator, shape: tuple[int, ...]) -> _Logits:
    """Every head a step from the next, in an order of each token's own."""
    return np.asarray(rng.permuted(_ramp(shape), axis=-1), np.float64)


def _ramp(shape: tuple[int, ...]) -> _Logits:
    """Rising scores; no probability underflows."""
    # Over all heads at most 60: exp(-60) is still a number in float32, 8.8e-27.
    step = min(0.5, 60.0 / max(shape[-1], 1))
    return np.asarray(np.broadcast_to(step * np.arange(shape[-1]), shape), np.float64)


def _ties(rng: np.random.Generator, shape: tuple[int, ...]) -> _Logits:
    """Return logits of two values only: the last chosen head is tied in almost every token."""
    return rng.integers(0, 2, shape).astype(np.float64)


def _all_negative(rng: np.random.Generator, shape: tuple[int, ...]) -> _Logits:
    # exp(-300) is 0 in float32: without taking off the maximum the softmax is 0 / 0.
    return clear(rng, shape) - 300.0


def _saturated(rng: np.random.Generator, shape: tuple[int, ...]) -> _Logits:
    """Return 1e4 for one head, and -1e4 for all others."""
    hot = rng.integers(0, max(shape[-1], 1), shape[:-1])
    logits: _Logits = np.where(np.arange(shape[-1]) == hot[..., None], 1e4, -1e4)
    return logits


FINITE_STATES = (
    # Equal scores go to the lower head index.
    RoutingState("ties", _ties),
    # All scores equal: the first heads are chosen.
    RoutingState("flat", lambda _, shape: np.full(shape, 0.5)),
    # Zero is no neutral element; exp underflows without the maximum.
    RoutingState("all negative", _all_negative),
    # exp of 1e4 overflows without the maximum; all other heads tie at 0.
    RoutingState("saturated", _saturated),
    # Every token chooses the last heads, and nobody the first ones.
    RoutingState("same heads", lambda _, shape: _ramp(shape)),
)
"""Put in front of all routers at once: numbers stay numbers."""

NAN = "NaN"
"""The state in which some tokens have a NaN among their logits: in front of one router at a time,
since every later layer would see it."""


def with_nan(logits: _Logits) -> _Logits:
    """Return logits [B, S, N] in which the first of every two tokens has one NaN."""
    changed: _Logits = logits.copy()
    # A view of all tokens, [B * S, N].
    tokens = changed.reshape(-1, changed.shape[-1])
    rows = np.arange(0, len(tokens), 2)
    # In another place from token to token: not every head is looked at first.
    tokens[rows, rows // 2 % max(tokens.shape[-1], 1)] = np.nan
    return changed


CASES = (*(state.name for state in FINITE_STATES), NAN)


def run_routing_states(sides: Sides, progress: Progress) -> list[CaseResult]:
    """Run every state.

    Args:
        sides: The package, the first of whose recorded inputs is what the model is given. Its
            policy says what counts as equal where there is no float64 reference.
        progress: What to report steps to.
    """
    routing = sides.routing
    # A layer without a router is said so in every case: silence would pass for a test.
    results = [case for layer in routing.others for case in _without_router(routing.graph, layer)]
    if not routing.routed:
        return results
    if not sides.package.vectors:
        why = "the package holds no recorded inputs to run the model on."
        return results + [
            _result(case, layer.info.path, "not run", why)
            for layer in routing.routed
            for case in CASES
        ]
    run = _prepare(sides)
    for state in FINITE_STATES:
        with progress.step(f"routing: {state.name}"):
            results += run.everywhere(state)
    with progress.step(f"routing: {NAN}"):
        results += [result for layer in routing.routed for result in run.nan_in(layer.router)]
    return results


@dataclass(frozen=True)
class _Both:
    """The results of one run: as the package runs, and by its function bodies."""

    got: Mapping[str, Array]
    reference: Mapping[str, Array]


def _prepare(sides: Sides) -> _RoutingRun:
    # Logits need the shape and dtype that the model computes them in, so it runs once as it is.
    layers = sides.routing.routed
    routers = [layer.router for layer in layers]
    names = list(dict.fromkeys(name for router in routers for name in router.logits.values()))
    values = sides.reference.open(names).run(sides.package.vectors[0].inputs)
    change = partial(force_logits, routers=routers, dtypes={k: values[k].dtype for k in names})
    seen = list(dict.fromkeys(name for layer in layers for name in layer.values))
    # One session a side for all states: logits are inputs of it.
    got, expected = sides.subject.open(seen, change), sides.reference.open(seen, change)
    return _RoutingRun(sides, values, got, expected)


@dataclass(frozen=True)
class _RoutingRun:
    sides: Sides
    recorded: Mapping[str, Array]
    subject: Runner
    reference: Runner
    judge: GateJudge = field(default_factory=GateJudge)

    def everywhere(self, state: RoutingState) -> Iterator[CaseResult]:
        """Put a state in front of every router at once."""
        logits = {router.node: self._logits(router, state) for router in self._routers}
        both = self._run(logits)
        if isinstance(both, str):
            yield _result(state.name, MODEL, "failed", both)
            return
        for layer in self.sides.routing.routed:
            router = layer.router
            problem = self._layer_problem(state.name, layer, logits[router.node], both)
            yield _judged(state.name, router.path, problem, "gates and attention agree")
        yield self._outputs(state.name, both)

    def nan_in(self, router: RouterLogits) -> Iterator[CaseResult]:
        """Put NaN in front of one router, and clear logits in front of the others."""
        # Clear choices elsewhere, so that what shows comes of this router.
        neutral = RoutingState("clear", clear)
        logits = {router.node: self._logits(router, neutral) for router in self._routers}
        mine = dict(logits[router.node])
        port = next(iter(mine))  # routed logits, where there are any
        mine[port] = with_nan(mine[port].astype(np.float64)).astype(mine[port].dtype)
        logits[router.node] = mine
        both = self._run(logits)
        if isinstance(both, str):
            yield _result(NAN, router.path, "failed", both)
            return
        problem = self._nan_problem(router, mine, both)
        yield _judged(NAN, router.path, problem, "NaN stays with its tokens, and shows")

    @property
    def _routers(self) -> list[RouterLogits]:
        return [layer.router for layer in self.sides.routing.routed]

    def _logits(self, router: RouterLogits, state: RoutingState) -> PortArrays:
        recorded = {port: self.recorded[name] for port, name in router.logits.items()}
        return {k: state.build(v.shape).astype(v.dtype) for k, v in recorded.items()}

    def _run(self, logits: Mapping[str, PortArrays]) -> _Both | str:
        """Run both, or return the sentence of the one that failed."""
        inputs = dict(self.sides.package.vectors[0].inputs)
        for router in self._routers:
            for port, array in logits[router.node].items():
                inputs[router.forced(port)] = array
        # The reference runs first: what it cannot run either is no fault of kernels.
        what = "the function bodies fail"
        try:
            reference = self.reference.run(inputs)
            what = "the package fails where its function bodies run"
            return _Both(self.subject.run(inputs), reference)
        except BackendError as error:
            return f"{what}: {error.message}"

    def _layer_problem(
        self, case: str, layer: RoutedLayer, logits: PortArrays, both: _Both
    ) -> str | None:
        router = layer.router
        # Both by the float64 definition: a mistake that kernels share with function bodies shows,
        # too.
        for values, whose in ((both.got, "gates"), (both.reference, "gates of the function body")):
            problem = self.judge.mismatch(case, router, logits, values[router.gates])
            if problem is not None:
                return _sentence(whose, router, case, problem)
        # The gates are right; what the nodes of the layer read may still be others.
        made = router_reference(router, logits)
        for values in (both.got, both.reference):
            for read in layer.reads:
                problem = read_problem(read, made, values)
                if problem is not None:
                    return _sentence(f"what {read.reader} reads as gates", router, case, problem)
        return self._attention_problem(case, router, both)

    def _attention_problem(
        self, case: str, router: RouterLogits, both: _Both, skipped: BoolArray | None = None
    ) -> str | None:
        """Compare what attention makes, without the tokens [B, S] that are skipped."""
        if router.attention is None:
            return None
        got, reference = both.got[router.attention], both.reference[router.attention]
        counted = self.sides.counted.of_attention(router, reference.shape)
        # Tokens in another order than the gates' cannot be told apart by the mask.
        if skipped is not None:
            by_token = [_by_token(array, skipped.shape) for array in (got, reference, counted)]
            known = [array[~skipped] for array in by_token if array is not None]
            if not router.in_order or len(known) < len(by_token):
                return None
            got, reference, counted = known[0], known[1], known[2].astype(np.bool_)
        what = f"attention of layer '{router.path}' in case '{case}'"
        problem = values_mismatch(what, got, reference, self._rule(reference), counted)
        return problem or nan_attention_problem(what, got, counted)

    def _nan_problem(self, router: RouterLogits, logits: PortArrays, both: _Both) -> str | None:
        for values, whose in ((both.got, "gates"), (both.reference, "gates of the function body")):
            problem = self.judge.mismatch_with_nan(NAN, router, logits, values[router.gates])
            if problem is not None:
                return _sentence(whose, router, NAN, problem)
        # Tokens with NaN are judged by `_hidden`, all others have to be as they were.
        hit = tokens_with_nan(logits)
        return self._attention_problem(NAN, router, both, hit) or self._hidden(router, both, hit)

    def _hidden(self, router: RouterLogits, both: _Both, hit: BoolArray) -> str | None:
        """A NaN gate must show in what attention makes of its token."""
        if router.attention is None or router.attributes["gate_mode"] != "weighted":
            return None
        # Weighted: NaN times anything is NaN, so a number means that the head was skipped.
        made = both.got[router.attention]
        rows = _by_token(made, hit.shape)
        if rows is None:
            return None
        counted = _by_token(self.sides.counted.of_attention(router, made.shape), hit.shape)
        hit = hit if counted is None else hit & counted.any(axis=-1)
        if np.isnan(rows[hit].astype(np.float64)).any(axis=-1).all():
            return None
        return (
            f"attention of layer '{router.path}' in case '{NAN}' gives numbers to tokens whose"
            " gates are NaN."
        )

    def _outputs(self, case: str, both: _Both) -> CaseResult:
        problem = None
        outputs = {
            output.name: both.got[output.name] for output in self.sides.package.manifest.outputs
        }
        for name, got in outputs.items():
            reference, what = both.reference[name], f"output '{name}' in case '{case}'"
            counted = self.sides.counted.of_output(name, reference.shape)
            rule = self._rule(reference)
            problem = problem or values_mismatch(what, got, reference, rule, counted)
        # Empty outputs agree with anything.
        if all(both.reference[name].size == 0 for name in outputs):
            return _result(case, MODEL, "not run", "every output is empty: no data.")
        recorded = self.sides.package.vectors[0]
        problem = problem or nan_output_problem(
            case, outputs, recorded, self.sides.counted.of_output
        )
        return _judged(case, MODEL, problem, "they agree with the function bodies")

    def _rule(self, reference: Array) -> Tolerance:
        policy, precision = self.sides.policy, self.sides.package.manifest.precision
        return policy.output_rule(reference.dtype.name, policy.model_rule(precision, self.subject))


def _by_token(attention: Array, tokens: tuple[int, ...]) -> Array | None:
    """Return [B, S, ...]: [B, S, C] as it is, [B, H, S, D] turned; None for other tokens."""
    if attention.ndim == 4:
        # [B, H, S, D] to [B, S, H * D].
        batch, heads, seq, size = attention.shape
        attention = np.moveaxis(attention, 1, 2).reshape(batch, seq, heads * size)
    return attention if attention.shape[:2] == tokens else None


def _without_router(graph: onnx.GraphProto, layer: LayerInfo) -> Iterator[CaseResult]:
    """Yield what is said of a layer that has no MoHRouter: it never had one, or has lost it."""
    for case in CASES:
        if form_named(layer.router).is_constant:
            why = "no input changes the gates: there are no logits."
            yield _result(case, layer.path, "not applicable", why)
        elif not layer.router_replaced:
            why = (
                f"the router is of plain operators ({layer.router}), so there is no place to put"
                " logits."
            )
            yield _result(case, layer.path, "not applicable", why)
        # One failure for the damage; the other cases could say no more.
        elif case == CASES[0]:
            why = (
                f"gates of layer '{layer.path}' do not come from a MoHRouter, as the manifest says:"
                f" '{layer.gates}' is made by {lost_at(graph, layer)}. The package is damaged."
            )
            yield _result(case, layer.path, "failed", why)
        else:
            yield _result(case, layer.path, "not run", "its MoHRouter was not found.")


def _sentence(what: str, router: RouterLogits, case: str, problem: str) -> str:
    return f"{what} of layer '{router.path}' in case '{case}': {problem}"


def _judged(case: str, place: str, problem: str | None, if_right: str) -> CaseResult:
    if problem is None:
        return _result(case, place, "passed", if_right)
    return _result(case, place, "failed", problem)


def _result(case: str, place: str, status: CaseStatus, detail: str) -> CaseResult:
    return CaseResult("routing", case, place, status, detail)
