"""Run a package with edge-case logits in front of its routers, and judge every layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
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
from moh_deploy.validate.edge_cases import routing_judge, source
from moh_deploy.validate.edge_cases.routing_judge import PortArrays, values_mismatch
from moh_deploy.validate.reference.valid_tokens import over_axes

_MakeLogits = Callable[[np.random.Generator, tuple[int, ...]], Array]
"""Makes logits [B, S, N] for N heads, or for the two stages, rounded to no dtype."""


def _ramp(_: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Rising scores; no probability underflows."""
    # Over all heads at most 60: exp(-60) is still a number in float32, 8.8e-27.
    step = min(0.5, 60.0 / max(shape[-1], 1))
    return np.broadcast_to(step * np.arange(shape[-1]), shape)


def _clear(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Every head a step from the next, in an order of each token's own."""
    return rng.permuted(_ramp(rng, shape), axis=-1).astype(np.float64)


def _saturated(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Return 1e4 for one head, and -1e4 for all others."""
    hot = rng.integers(0, max(shape[-1], 1), shape[:-1])
    return np.where(np.arange(shape[-1]) == hot[..., None], 1e4, -1e4)


_FINITE_STATES: Mapping[str, _MakeLogits] = {
    # Two values only: the last chosen head is tied in almost every token, and equal scores go to
    # the lower head index.
    "ties": lambda rng, shape: rng.integers(0, 2, shape),
    # All scores equal: the first heads are chosen.
    "flat": lambda _, shape: np.full(shape, 0.5),
    # exp(-300) is 0 in float32: without taking off the maximum the softmax is 0 / 0.
    "all negative": lambda rng, shape: _clear(rng, shape) - 300.0,
    # exp of 1e4 overflows without the maximum; all other heads tie at 0.
    "saturated": _saturated,
    # Every token chooses the last heads, and none the first.
    "same heads": _ramp,
}
"""The logits on which routers go wrong, put in front of all at once: numbers stay numbers."""

_NAN = "NaN"
"""The state in which some tokens have a NaN among their logits: in front of one router at a time,
since every later layer would see it."""

_CASES = (*_FINITE_STATES, _NAN)


def _with_nan(logits: Array) -> Array:
    """Return logits [B, S, N] in which the first of every two tokens has one NaN."""
    tokens = logits.astype(np.float64).reshape(-1, logits.shape[-1])
    rows = np.arange(0, len(tokens), 2)
    # In another place from token to token: not every head is looked at first.
    tokens[rows, rows // 2 % max(tokens.shape[-1], 1)] = np.nan
    return tokens.reshape(logits.shape).astype(logits.dtype)


def run_routing_states(sides: source.Sides, progress: Progress) -> list[source.CaseResult]:
    """Run every state of the routers.

    Args:
        sides: The package, the first of whose recorded inputs is what the model is given. Its
            policy says what counts as equal where there is no float64 reference.
        progress: What to report steps to.
    """
    routed = {layer.info.path for layer in sides.routed}
    # A layer without a router is said so in every case: silence would pass for a test.
    results = [
        result
        for layer in sides.package.manifest.layers
        if layer.path not in routed
        for result in _without_router(sides, layer)
    ]
    if not routed:
        return results
    if not sides.package.vectors:
        why = "the package holds no recorded inputs to run the model on."
        layers = sides.routed
        return results + [_result(c, x.info.path, "not run", why) for x in layers for c in _CASES]
    run = _RoutingRun.of(sides)
    for case in _FINITE_STATES:
        with progress.step(f"routing: {case}"):
            results += run.everywhere(case)
    with progress.step(f"routing: {_NAN}"):
        results += [run.nan_in(layer.router) for layer in sides.routed]
    return results


class _Both(NamedTuple):
    """The values of one run: as the package runs, and by its function bodies."""

    got: Mapping[str, Array]
    reference: Mapping[str, Array]


@dataclass(frozen=True)
class _RoutingRun:
    """Both sides of a probe with logits as inputs."""

    sides: source.Sides  # the sides
    # The logits that the model computes itself: states have their shape and dtype.
    recorded: Mapping[str, Array]
    subject: Runner  # a session of the package
    reference: Runner  # a session of its function bodies
    judge: routing_judge.GateJudge = field(default_factory=routing_judge.GateJudge)

    @classmethod
    def of(cls, sides: source.Sides) -> _RoutingRun:
        routers = [layer.router for layer in sides.routed]
        names = list(dict.fromkeys(name for router in routers for name in router.logits.values()))
        values = sides.reference.open(names).run(sides.package.vectors[0].inputs)
        change = partial(force_logits, routers=routers, dtypes={k: values[k].dtype for k in names})
        seen = list(dict.fromkeys(name for layer in sides.routed for name in layer.values))
        # One session a side for all states: logits are inputs of it.
        return cls(
            sides, values, sides.subject.open(seen, change), sides.reference.open(seen, change)
        )

    def everywhere(self, case: str) -> Iterator[source.CaseResult]:
        """Put a state in front of every router at once."""
        logits = self._logits(_FINITE_STATES[case])
        both = self._run(logits)
        if isinstance(both, str):
            yield _result(case, source.MODEL, "failed", both)
            return
        for layer in self.sides.routed:
            problem = self._layer_problem(case, layer, logits[layer.router.node], both)
            yield _judged(case, layer.info.path, problem, "gates and attention agree")
        yield self._outputs(case, both)

    def nan_in(self, router: RouterLogits) -> source.CaseResult:
        """Put NaN in front of one router, and clear logits in front of the others."""
        # Clear choices elsewhere, so that what shows comes of this router.
        logits = self._logits(_clear)
        mine = dict(logits[router.node])
        port = next(iter(mine))  # routed logits, where there are any
        mine[port] = _with_nan(mine[port])
        both = self._run({**logits, router.node: mine})
        if isinstance(both, str):
            return _result(_NAN, router.path, "failed", both)
        problem = self._nan_problem(router, mine, both)
        return _judged(_NAN, router.path, problem, "NaN stays with its tokens, and shows")

    def _logits(self, make: _MakeLogits) -> dict[str, PortArrays]:
        """Return node of each router to its logits: of one shape the same ones."""
        return {
            layer.router.node: {
                port: make(np.random.default_rng(0), known.shape).astype(known.dtype)
                for port, name in layer.router.logits.items()
                for known in [self.recorded[name]]
            }
            for layer in self.sides.routed
        }

    def _run(self, logits: Mapping[str, PortArrays]) -> _Both | str:
        """Run both, or return the sentence of the one that failed."""
        inputs = dict(self.sides.package.vectors[0].inputs)
        for layer in self.sides.routed:
            for port, array in logits[layer.router.node].items():
                inputs[layer.router.forced(port)] = array
        # The reference runs first: what it cannot run either is no fault of kernels.
        what = "the function bodies fail"
        try:
            reference = self.reference.run(inputs)
            what = "the package fails where its function bodies run"
            return _Both(self.subject.run(inputs), reference)
        except BackendError as error:
            return f"{what}: {error.message}"

    def _layer_problem(
        self, case: str, layer: source.RoutedLayer, logits: PortArrays, both: _Both
    ) -> str | None:
        router = layer.router
        where = f"of layer '{router.path}' in case '{case}'"
        # Both by the float64 definition: a mistake that kernels share with function bodies shows,
        # too.
        for values, whose in zip(both, _GATES, strict=True):
            problem = self.judge.mismatch(case, router, logits, values[router.gates])
            if problem is not None:
                return f"{whose} {where}: {problem}"
        # The gates are right; what the nodes of the layer read may still be others.
        made = routing_judge.router_reference(router, logits)
        for values in both:
            for read in layer.reads:
                problem = routing_judge.read_problem(read, made, values)
                if problem is not None:
                    return f"what {read.reader} reads as gates {where}: {problem}"
        return self._attention_problem(case, router, both, None)

    def _nan_problem(self, router: RouterLogits, logits: PortArrays, both: _Both) -> str | None:
        where = f"of layer '{router.path}' in case '{_NAN}'"
        for values, whose in zip(both, _GATES, strict=True):
            problem = self.judge.mismatch_with_nan(_NAN, router, logits, values[router.gates])
            if problem is not None:
                return f"{whose} {where}: {problem}"
        if router.attention is None:
            return None
        hit = routing_judge.tokens_with_nan(logits)  # [B, S]
        # All other tokens have to be as they were.
        problem = self._attention_problem(_NAN, router, both, hit)
        if problem is not None or router.attributes["gate_mode"] != "weighted":
            return problem
        # Weighted: NaN times anything is NaN, so a number means that the head was skipped.
        nan = routing_judge.nan_places(both.got[router.attention])
        tokens = source.masked_axes(nan.shape)
        others = tuple(axis for axis in range(nan.ndim) if axis not in tokens)
        shown = np.asarray(nan.any(axis=others))  # [B, S]
        if shown.shape != hit.shape:
            return None
        counted = self.sides.counted_attention(router, nan.shape)
        if shown[hit & counted.any(axis=others)].all():
            return None
        return f"attention {where} gives numbers to tokens whose gates are NaN."

    def _attention_problem(
        self, case: str, router: RouterLogits, both: _Both, skipped: BoolArray | None
    ) -> str | None:
        """Compare what attention makes, without the tokens [B, S] that are skipped."""
        if router.attention is None:
            return None
        got, reference = both.got[router.attention], both.reference[router.attention]
        counted = self.sides.counted_attention(router, reference.shape)
        if skipped is not None:
            tokens = source.masked_axes(reference.shape)
            # Tokens in another order than the gates' cannot be told apart by the mask.
            if not router.in_order or tuple(counted.shape[i] for i in tokens) != skipped.shape:
                return None
            counted = counted & over_axes(~skipped, tokens, reference.shape)
        what = f"attention of layer '{router.path}' in case '{case}'"
        problem = values_mismatch(what, got, reference, self._rule(reference), counted)
        nan = routing_judge.nan_places(got)
        # Some tokens may be NaN, as a query without keys is in many a model, and closed heads are
        # 0. But where there is NaN and no other number, no token got anything.
        if problem or not nan[counted].any() or (got[~nan & counted] != 0).any():
            return problem
        return (
            f"{what} is NaN wherever it is not 0: {routing_judge.NAN_CAUSE}. It comes of this"
            " layer, or of weights or nodes before it."
        )

    def _outputs(self, case: str, both: _Both) -> source.CaseResult:
        recorded = self.sides.package.vectors[0]
        counted = self.sides.view(recorded).places
        names = [output.name for output in self.sides.package.manifest.outputs]
        # Empty outputs agree with anything.
        if not any(both.reference[name].size for name in names):
            return _result(case, source.MODEL, "not run", "every output is empty: no data.")
        problem = None
        for name in names:
            got, reference = both.got[name], both.reference[name]
            what, places = f"output '{name}' in case '{case}'", counted(name, reference.shape)
            problem = values_mismatch(what, got, reference, self._rule(reference), places)
            if problem is not None:
                break
        else:
            outputs = {name: both.got[name] for name in names}
            problem = routing_judge.nan_output_problem(case, outputs, recorded, counted)
        return _judged(case, source.MODEL, problem, "they agree with the function bodies")

    def _rule(self, reference: Array) -> Tolerance:
        policy, precision = self.sides.policy, self.sides.package.manifest.precision
        return policy.output_rule(reference.dtype.name, policy.model_rule(precision, self.subject))


_GATES = ("gates", "gates of the function body")


def _without_router(sides: source.Sides, layer: LayerInfo) -> Iterator[source.CaseResult]:
    """Yield what is said of a layer that has no MoHRouter: it never had one, or has lost it."""
    status: source.CaseStatus = "not applicable"
    if form_named(layer.router).is_constant:
        why = "no input changes the gates: there are no logits."
    elif not layer.router_replaced:
        plain = f"the router is of plain operators ({layer.router})"
        why = f"{plain}, so there is no place to put logits."
    else:
        status, why = "not run", "its MoHRouter was not found."
    for case in _CASES:
        # One failure for the damage; the other cases could say no more.
        if status == "not run" and case == _CASES[0]:
            damage = (
                f"gates of layer '{layer.path}' do not come from a MoHRouter, as the manifest says:"
                f" '{layer.gates}' is made by {lost_at(sides.graph, layer)}. The package is"
                " damaged."
            )
            yield _result(case, layer.path, "failed", damage)
        else:
            yield _result(case, layer.path, status, why)


def _judged(case: str, place: str, problem: str | None, if_right: str) -> source.CaseResult:
    return _result(case, place, "failed" if problem else "passed", problem or if_right)


def _result(case: str, place: str, status: source.CaseStatus, detail: str) -> source.CaseResult:
    return source.CaseResult("routing", case, place, status, detail)
