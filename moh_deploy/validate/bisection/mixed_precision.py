"""Find the nodes that have to be in float32: modules first, then the nodes in them."""

import math
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar, cast

import onnx_ir as ir

from moh_deploy.graph.float32_form import store
from moh_deploy.graph.forced_gates import GateTypes
from moh_deploy.graph.precision_policy import LowType, largest_number
from moh_deploy.package import OnnxPackage
from moh_deploy.report.report import FLAT, HIDDEN, in_json
from moh_deploy.validate.bisection.divergence import NodeError
from moh_deploy.validate.bisection.places import ForcedModel, ModelGraph, NodePlace
from moh_deploy.validate.compare.noise_floor import STEPS

# Find a smallest set of items with which a test passes, in few tests.
#
# A test that passes with some items passes with more of them: `find` relies on that, and `thin`
# looks whether it was right. With k of n items needed, it takes about k * log2(n) tests.
#
# Source: Junker, QuickXplain (2004), in its linear form: the last item of the shortest prefix that
# passes is needed, whatever comes before it.

_T = TypeVar("_T")


@dataclass(frozen=True)
class Found(Generic[_T]):
    """The result of a search."""

    items: tuple[_T, ...]  # a set that passes
    smallest: bool  # every item of it was shown to be needed. False where tests ran out before.


@dataclass
class MinimalSet(Generic[_T]):
    """A search that asks at most so many tests."""

    passes: Callable[[tuple[_T, ...]], bool]  # the test
    most: int  # how many tests it may take
    asked: int = 0  # how many it took
    _known: dict[frozenset[_T], bool] = field(default_factory=dict)

    def find(self, items: Sequence[_T]) -> Found[_T]:
        """Return the needed ones of some items.

        Args:
            items: All of them together pass. Those that are likely to be needed come first: of two
                sets that would do, it is the one further in front that is found.
        """
        needed: tuple[_T, ...] = ()
        rest = tuple(items)
        while rest and self.asked < self.most:
            # What was found needed already passes: nothing of the rest is.
            if self._ask(needed):
                return self.thin(needed)
            # Invariant: the first `fails` of the rest do not pass, the first `enough` do.
            fails, enough = 0, len(rest)
            while enough - fails > 1 and self.asked < self.most:
                # Double the prefix until one passes, then halve: the likely items are in front.
                middle = max(2 * fails, 1)
                if enough < len(rest) or middle >= enough:
                    middle = (fails + enough) // 2
                if self._ask((*needed, *rest[:middle])):
                    enough = middle
                else:
                    fails = middle
            # Tests ran out inside the search: this prefix passes, but may be larger than needed.
            if enough - fails > 1:
                return Found((*needed, *rest[:enough]), smallest=False)
            # The item that tips a prefix over is needed; what comes behind it is not.
            needed, rest = (*needed, rest[enough - 1]), rest[: enough - 1]
        return self.thin((*needed, *rest))

    def thin(self, items: Sequence[_T]) -> Found[_T]:
        """Leave out items of a set that passes, until no single one can be spared."""
        kept = tuple(items)
        for item in items:
            if self.asked >= self.most:
                return Found(kept, smallest=False)
            # The search assumes that more items never hurt; here each item is left out in fact.
            without = tuple(entry for entry in kept if entry != item)
            if self._ask(without):
                kept = without
        return Found(kept, smallest=True)

    def _ask(self, items: tuple[_T, ...]) -> bool:
        key = frozenset(items)
        if key not in self._known:
            self.asked += 1
            self._known[key] = self.passes(items)
        return self._known[key]


SearchStep = Callable[[str], AbstractContextManager[None]]


class Form(Protocol):
    """A package of lower precision as it would be in float32, and what makes of that the same with
    some nodes in float32 again."""

    @property
    def package(self) -> OnnxPackage:
        """In float32, in a scratch directory, with the manifest of the one in lower precision."""

    @property
    def low(self) -> str:
        """Return the lower precision."""

    @property
    def weights(self) -> str:
        """Where the float32 weights are from, in words."""

    @property
    def rounding(self) -> Collection[str]:
        """First outputs of the nodes that round."""

    def lowered(self, keep: Mapping[str, str]) -> ir.Model:
        """Return the model with only these in float32: first outputs to the reason."""

    def gate_types(self, model: ir.Model) -> GateTypes:
        """Return the dtypes of the layers' gates in what `lowered` made."""


@dataclass(frozen=True)
class KeptNode:
    """A node that has to be in float32."""

    place: NodePlace = field(metadata=FLAT)  # the node
    reason: str  # what lower precision does to it


@dataclass(frozen=True)
class MixedPrecision:
    """The nodes that have to be in float32 for a package to be right."""

    nodes: tuple[KeptNode, ...]  # in execution order
    # Without any one of them the package fails again. False where the runs were used up before that
    # was known.
    smallest: bool
    trials: int = field(metadata=HIDDEN)  # how many packages were made and run to find them

    @property
    @in_json("runs")
    def _runs(self) -> int:
        return self.trials

    @property
    def keep(self) -> dict[str, str]:
        """First output of each node to the reason."""
        return {node.place.value: node.reason for node in self.nodes}


@dataclass
class Trials:
    """Makes packages with some nodes in float32, and judges them."""

    form: Form  # what they are made from
    accepts: Callable[[ForcedModel], bool]  # whether a package is right
    scratch: Path  # a directory to make them in, one after the other
    forced: bool  # the reference gates are fed to them
    most: int  # how many there may be, 2 at least
    step: SearchStep  # encloses each of them, to show how far a search is
    _known: dict[frozenset[str], bool] = field(default_factory=dict)

    def make(self, keep: Mapping[str, str]) -> ForcedModel:
        """Make the package with these nodes in float32, in place of the one before."""
        # One package at a time: a search makes dozens of them.
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir()
        model = self.form.lowered(keep)
        gates = self.form.gate_types(model) if self.forced else {}
        return ForcedModel(store(model, self.form.package, self.scratch), gates)

    def find_mixed_precision(
        self, graph: ModelGraph, errors: Sequence[NodeError]
    ) -> MixedPrecision | None:
        """Find a smallest set of nodes.

        Args:
            graph: The float32 form's.
            errors: Of the nodes as the package is, against the float32 form: what is likely to be
                needed is tried first.

        Returns:
            None if the package is not right with all nodes in float32.
        """
        # Modules first: with k of n needed, the search takes about k * log2(n) packages, and there
        # are far fewer modules than nodes.
        ranked = ranked_nodes(self.form, graph, errors)
        modules: dict[str, list[KeptNode]] = {}
        for kept_node in ranked:
            modules.setdefault(kept_node.place.module, []).append(kept_node)
        # With all of them in float32 it still fails, so no choice of them helps.
        if not self._passes(modules, [*modules]):
            return None
        found = self._smallest(modules)
        # Then the nodes in the modules that are needed.
        nodes = {node.place.value: [node] for node in ranked if node.place.module in found.items}
        found = self._smallest(nodes)
        order = {node.output[0]: index for index, node in enumerate(graph.nodes)}
        kept = sorted(found.items, key=order.__getitem__)
        return MixedPrecision(
            tuple(nodes[name][0] for name in kept), found.smallest, len(self._known)
        )

    def _smallest(self, groups: Mapping[str, Sequence[KeptNode]]) -> Found[str]:
        # All searches share one budget of trials.
        search = MinimalSet[str](lambda names: self._passes(groups, names), self.most)
        search.asked = len(self._known)
        return search.find([*groups])

    def _passes(self, groups: Mapping[str, Sequence[KeptNode]], names: Sequence[str]) -> bool:
        keep = {node.place.value: node.reason for name in names for node in groups[name]}
        # By the nodes kept, so that a set of nodes that a module stood for is not run again.
        key = frozenset(keep)
        if key not in self._known:
            which = f"run {len(self._known) + 1} of at most {self.most}"
            with self.step(f"{which}: {len(keep)} nodes in float32"):
                self._known[key] = self.accepts(self.make(keep))
        return self._known[key]


def ranked_nodes(form: Form, graph: ModelGraph, errors: Sequence[NodeError]) -> list[KeptNode]:
    """Return the nodes in lower precision that round, those likely to be needed first."""
    known = {error.place.value: error for error in errors}
    rounding = form.rounding
    own = enumerate(graph.nodes[: graph.own])
    places = [graph.place(index) for index, node in own if node.output[0] in rounding]
    # Integers have a scale: nothing is too large for them.
    most = largest_number(cast(LowType, form.low)) if form.low in STEPS else math.inf

    # Overflow first, which nothing else can make good, then the nodes that add most error.
    def rank(place: NodePlace) -> tuple[bool, float]:
        error = known.get(place.value)
        return (error is None or error.size <= most, 0.0 if error is None else -error.growth)

    places.sort(key=rank)
    return [KeptNode(place, _reason(known.get(place.value), form.low, most)) for place in places]


def _reason(error: NodeError | None, low: str, most: float) -> str:
    """Say what lower precision does to a node, whose numbers end at `most`."""
    if error is None:
        return f"with it in {low}, the package fails"
    if error.size > most:
        return f"its numbers reach {error.size:.3g}, and {low} ends at {most:.3g}"
    if not error.finite:
        return f"its result is not finite in {low}"
    if low not in STEPS or error.growth > STEPS[low]:
        return f"error of {error.before:.2g} before it, {error.behind:.2g} behind it"
    # The distance between neighbours of the largest number: the power of two below it, times a
    # step.
    step = 2.0 ** math.floor(math.log2(error.size)) * STEPS[low] if error.size else 0.0
    return f"its numbers reach {error.size:.3g}, where {low} has steps of {step:.2g}"
