"""Put numbers that tie heads where logits are computed, and see what reaches the router.

Equal numbers have to reach a router as equal logits, but for a bias of each head. And what is made
of ties has to be nearly what is made of numbers that fall from head to head by next to nothing: all
that a model computes with there is continuous.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from moh_deploy.graph.fixed_routing import fix_routing, fixed_input
from moh_deploy.graph.keep_only import keep_only
from moh_deploy.graph.router_logits import RouterLogits
from moh_deploy.runtime.base import Runner
from moh_deploy.system.npz import Array, BoolArray
from moh_deploy.validate.differences import largest
from moh_deploy.validate.edge_cases.routing_judge import PortArrays
from moh_deploy.validate.edge_cases.source import RoutedLayer, Sides, fixed_values
from moh_deploy.validate.policy import Policy

ROUTED = "routed_logits"

_STEPS = 4
"""Steps of the dtype from one head to the next: what rounding on the way leaves of them still tells
heads apart."""

_EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""Step of each dtype at 1."""

_SMALL = 2.0**-6
"""Near 0 a dtype tells apart what is lost beside 1."""

_AS_MUCH = 16
"""A continuous function changes about as much from one small step to the next."""

_MANY, _MOST_DRAWS = 64, 8

_Float64 = NDArray[np.float64]
_Arrays = Mapping[str, Array]


class LogitCut(NamedTuple):
    """Values in front of a router that numbers can take the place of.

    Attributes:
        values: What they take the place of.
        exact: Equal numbers give equal logits, to the last bit.
    """

    values: tuple[str, ...]
    exact: bool


@dataclass(frozen=True)
class TiedLayer:
    """A layer whose router is given ties.

    Attributes:
        layer: The layer.
        cuts: Values that are each as large as the routed logits, the nearest to the router first,
            and last all that the logits are computed from.
    """

    layer: RoutedLayer
    cuts: Sequence[LogitCut]

    @property
    def path(self) -> str:
        return self.layer.info.path

    @property
    def router(self) -> RouterLogits:
        return self.layer.router

    def cut(self, depth: int) -> LogitCut:
        """Return the cut of a depth, the last one if there are fewer."""
        # Layers have fronts of different lengths; a shorter one takes the numbers at its end again.
        return self.cuts[min(depth, len(self.cuts) - 1)]


class TiedRun(NamedTuple):
    """Numbers put into a model, by name, and the logits that each router reads then."""

    values: Mapping[str, Array]
    logits: Sequence[PortArrays]


@dataclass(frozen=True)
class Front:
    """The operators in front of all routers, without the rest of the model.

    Attributes:
        layers: The layers.
        depth: Which of their cuts takes the numbers.
        fixed: What is put into the model, as it is in a recorded run: values of these cuts, and of
            all that logits are computed from.
        inputs: The inputs of that run.
        runner: Computes logits; None where every router reads what is put in.
        fed: What the runner takes.
    """

    layers: Sequence[TiedLayer]
    depth: int
    fixed: Mapping[str, Array]
    inputs: Mapping[str, Array]
    runner: Runner | None
    fed: Sequence[str]

    @classmethod
    def of(
        cls, sides: Sides, layers: Sequence[TiedLayer], depth: int, recorded: Mapping[str, Array]
    ) -> Front:
        """Open the operators behind the cuts of one depth."""
        cuts = dict.fromkeys(name for layer in layers for name in layer.cut(depth).values)
        # Sources are fixed as well, so that every layer's logits depend on nothing before them.
        sources = dict.fromkeys(name for layer in layers for name in layer.cuts[-1].values)
        fixed = {name: recorded[name] for name in (*cuts, *sources)}
        ports = [name for layer in layers for name in _read(layer.router, fixed).values()]
        computed = list(dict.fromkeys(name for name in ports if name not in fixed_values(fixed)))
        fed: list[str] = []

        def change(graph: onnx.GraphProto) -> None:
            fix_routing(graph, fixed)
            # Without the rest of the model, which would run for every set of numbers.
            keep_only(graph, computed)
            fed.extend(info.name for info in graph.input)

        runner = sides.reference.open(computed, change) if computed else None
        return cls(layers, depth, fixed, sides.package.vectors[0].inputs, runner, fed)

    @property
    def tied(self) -> Mapping[str, Array]:
        """The values that take the numbers, as recorded."""
        names = dict.fromkeys(
            name for layer in self.layers for name in layer.cut(self.depth).values
        )
        return {name: self.fixed[name] for name in names}

    def run(self, values: Mapping[str, Array]) -> TiedRun:
        """Compute what each router reads."""
        known = {**self.inputs, **fixed_values({**self.fixed, **values})}
        if self.runner is not None:
            known |= self.runner.run({name: known[name] for name in self.fed})
        read = [_read(layer.router, self.fixed).items() for layer in self.layers]
        return TiedRun(values, [{port: known[name] for port, name in ports} for ports in read])

    def problems(self, policy: Policy) -> Iterator[tuple[str, str]]:
        """Yield path and sentence of layers whose logits break ties, or jump at them."""
        # At 1, and near 0, where an epsilon added to break ties is not rounded away.
        for level in (1.0, _SMALL):
            run = self.run(self._level(level))
            for layer, logits in zip(self.layers, run.logits, strict=True):
                problem = self._nearly_equal(layer, logits, policy)
                if problem is not None:
                    yield layer.path, problem
        runs = self.falling(two_levels(self.tied))
        for index, layer in enumerate(self.layers):
            if ROUTED in layer.router.logits:
                routed = [run.logits[index][ROUTED] for run in runs]
                known = np.logical_and.reduce([_is_number(array) for array in routed])  # [B, S]
                # Sums over many terms on the way round more than once.
                step = 64 * step_of(routed[0])
                wide = [
                    np.where(known[..., None], array.astype(np.float64), 0.0) for array in routed
                ]
                problem = jump(wide, step)
                if problem is not None:
                    yield layer.path, f"what its router reads {problem}"

    def ties(self, tokens: int) -> Iterator[Mapping[str, Array]]:
        """Yield numbers that tie.

        Two levels, so that the last chosen head ties in many tokens; fewer of the higher one, so
        that each head is chosen in some of them; and one level.

        Args:
            tokens: How many a router sees, the fewest: few of them are given others again.
        """
        # top_k - 1/2 of the routed heads are to be higher: then the last chosen one is often tied.
        shares = []
        for layer in self.layers:
            attributes = layer.router.attributes
            routed = layer.layer.info.num_heads - int(attributes["num_shared_heads"])
            shares.append((int(attributes["top_k"]) - 0.5) / max(routed, 1))
        yield two_levels(self.tied)
        for seed in range(max(1, min(_MANY // max(tokens, 1), _MOST_DRAWS))):
            yield two_levels(self.tied, min(shares), seed)
        yield self._level(1.0)

    def falling(self, values: Mapping[str, Array]) -> list[TiedRun]:
        """Return runs of these numbers, and of numbers that fall from head to head by one step and
        by two.

        Where a router reads what falls as its sources rise, a distance, say, these rise.
        """
        axes = self._axes_of_heads()
        # Falling from head to head, the lower index is the better one, as ties go. Where the logits
        # are a distance of the sources, that takes sources that rise.
        down, up = (self._stepped(values, axes, dict.fromkeys(values, way)) for way in (-1, 1))
        rising = {
            name
            for index, layer in enumerate(self.layers)
            if not same_choices(layer, index, down) and same_choices(layer, index, up)
            for name in layer.cut(self.depth).values
        }
        signs = {name: 1 if name in rising else -1 for name in values}
        return self._stepped(values, axes, signs) if rising else down

    def _nearly_equal(self, layer: TiedLayer, logits: PortArrays, policy: Policy) -> str | None:
        routed = logits.get(ROUTED)
        if routed is None or not routed.size:
            return None
        rule, step = policy.rule(routed.dtype.name), step_of(routed)
        wide = routed.astype(np.float64)
        spread = _spread(wide)
        # Some operators are vectorised, and round the last numbers of a vector otherwise; see
        # `is_exact`.
        exact = layer.cut(self.depth).exact
        rounding = 0.0 if exact else _STEPS * step * float(np.abs(wide).max())
        # Further apart is a bias of each head, which is meant to tell heads apart.
        most = max(rule.least, policy.rule("float32").near_tie)
        if not rounding < spread <= most:
            return None
        return (
            f"equal numbers reach its router up to {spread:.3g} apart: too little for a bias, and"
            " enough to break ties."
        )

    def _stepped(
        self, values: _Arrays, axes: Mapping[str, Sequence[int]], signs: Mapping[str, int]
    ) -> list[TiedRun]:
        heads = {
            name: layer.layer.info.num_heads
            for layer in self.layers
            for name in layer.cut(self.depth).values
        }
        runs = []
        for steps in (0, 1, 2):
            stepped = {
                name: _stepped(array, axes[name], signs[name] * steps, heads[name])
                for name, array in values.items()
            }
            runs.append(self.run(stepped))
        return runs

    def _axes_of_heads(self) -> dict[str, list[int]]:
        """Return the axes of each value along which it tells the heads of a router apart."""
        axes: dict[str, list[int]] = {name: [] for name in self.tied}
        flat = self.run(self._level(1.0))
        # An axis tells heads apart if numbers that rise along it spread the logits of a token.
        for axis in range(max(array.ndim for array in self.tied.values())):
            level = self._level(1.0)
            level |= {k: _rising(array, axis) for k, array in level.items() if axis < array.ndim}
            rising = self.run(level)
            for layer, before, after in zip(self.layers, flat.logits, rising.logits, strict=True):
                if ROUTED not in before or not before[ROUTED].size:
                    continue
                with np.errstate(invalid="ignore"):  # infinities have no difference
                    moved = np.subtract(after[ROUTED], before[ROUTED], dtype=np.float64)
                # The change is looked at, and not the logits: a bias spreads these without any
                # axis.
                if _spread(moved) > 0:
                    for name in layer.cut(self.depth).values:
                        if axis < self.tied[name].ndim and axis not in axes[name]:
                            axes[name].append(axis)
        return axes

    def _level(self, level: float) -> dict[str, Array]:
        return {name: np.full_like(array, level) for name, array in self.tied.items()}


def two_levels(values: Mapping[str, Array], share: float = 0.5, seed: int = 0) -> dict[str, Array]:
    """Return 1 and 2, by chance, in place of values; `share` of them are 2."""
    # 1 and 2 are exact in every dtype, and far from 0 and from overflow.
    rng = np.random.default_rng(seed)
    return {
        name: (1 + (rng.random(array.shape) < share)).astype(array.dtype)
        for name, array in values.items()
    }


def is_judged(index: int, runs: Sequence[TiedRun]) -> bool:
    """Tell whether the logits of a layer can be judged by: a router that divides by how far scores
    are apart makes no numbers of ties."""
    arrays = [array for run in runs for array in run.logits[index].values()]
    return all(bool(_is_number(array).all()) for array in arrays)


def same_choices(layer: TiedLayer, index: int, runs: Sequence[TiedRun]) -> bool:
    """Tell whether every token has to choose the same heads of a layer in all of these runs."""
    if ROUTED not in layer.router.logits:
        return True
    top_k = int(layer.router.attributes["top_k"])
    first, *others = (_chosen(run.logits[index][ROUTED], top_k) for run in runs)
    # Falling by a step breaks ties toward the lower index, which is what a router does with them.
    return all(bool((other == first).all()) for other in others)


def step_of(array: Array) -> float:
    """Return the step of an array's dtype at 1."""
    return _EPSILON[array.dtype.name]


def jump(arrays: Sequence[Array], relative: float) -> str | None:
    """Say where a value differs more between ties and one step than between one step and two.

    Args:
        arrays: The value at ties, behind one step, and behind two.
        relative: What rounding alone may do, as a share of the value.
    """
    ties, one, two = (array.astype(np.float64) for array in arrays)
    # Where everything is continuous, the first step changes about as much as the second.
    first, second = _distance(ties, one), _distance(one, two)
    size = float(np.abs(one[np.isfinite(one)]).max(initial=1.0))
    limit = _AS_MUCH * largest(second) + relative * size
    if largest(first) <= limit:
        return None
    at = tuple(int(i) for i in np.unravel_index(int(first.argmax()), first.shape))
    return (
        f"jumps at ties: at {list(at)} it is {ties[at]:.6g}, and {one[at]:.6g} where the lower of"
        f" two heads has next to nothing more ({int((first > limit).sum())} of {first.size})."
    )


def _is_number(logits: Array) -> BoolArray:
    """Return [B, S]: which tokens have neither NaN nor infinity, but for what hides a head."""
    wide = logits.astype(np.float64)
    return np.asarray((np.isfinite(wide) | np.isneginf(wide)).all(axis=-1), bool)


def _spread(logits: _Float64) -> float:
    """Return the most that the logits of one token are apart; infinite where one is no number."""
    if not np.isfinite(logits).all():
        return math.inf
    return float(np.ptp(logits, axis=-1).max())


def _chosen(logits: Array, top_k: int) -> BoolArray:
    """Return [B, S, R]: the heads that each token has to choose."""
    wide = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):
        exponentials = np.exp(wide - wide.max(axis=-1, keepdims=True, initial=-np.inf))
        # Routers rank probabilities in float32: logits that differ by less tie there.
        probabilities = exponentials / exponentials.sum(axis=-1, keepdims=True)
    order = np.argsort(-probabilities.astype(np.float32), axis=-1, kind="stable")
    chosen = np.zeros(logits.shape, bool)
    np.put_along_axis(chosen, order[..., :top_k], values=True, axis=-1)
    return chosen


def _read(router: RouterLogits, fixed: Mapping[str, Array]) -> dict[str, str]:
    """Return each port to the value that the router reads there, or to the input in its place."""
    return {
        port: fixed_input(name) if name in fixed else name for port, name in router.logits.items()
    }


def _along(array: Array, axis: int) -> _Float64:
    """Return the index along an axis, to be added to the array."""
    shape = [1] * array.ndim
    shape[axis] = array.shape[axis]
    return np.arange(array.shape[axis], dtype=np.float64).reshape(shape)


def _rising(array: Array, axis: int) -> Array:
    # Up to twice the value at the end of the axis.
    wide = array.astype(np.float64) * (1 + _along(array, axis) / max(array.shape[axis], 1))
    rising: Array = wide.astype(array.dtype)
    return rising


def _stepped(array: Array, axes: Sequence[int], steps: float, heads: int) -> Array:
    """Return numbers that rise from head to head, by so many steps."""
    wide = array.astype(np.float64)
    for axis in axes:
        size = array.shape[axis]
        # All elements of a head get the same number: [.., H * D] has D of them.
        elements = max(size // heads, 1) if size % heads == 0 else 1  # of a head's queries, say
        wide = wide + steps * _STEPS * step_of(array) * (_along(array, axis) // elements)
    return wide.astype(array.dtype)


def _distance(float64: _Float64, other: _Float64) -> _Float64:
    # Equal infinities are no distance apart, nor are two NaN.
    same = (float64 == other) | (np.isnan(float64) & np.isnan(other))
    with np.errstate(invalid="ignore"):
        distance = np.abs(float64 - other)
    return np.where(same, 0.0, np.nan_to_num(distance, nan=np.inf, posinf=np.inf))
