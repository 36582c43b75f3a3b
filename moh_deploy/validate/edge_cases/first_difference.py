"""Find the first layer in which a run differs from the reference.

All layers attend by the gates of the reference, whatever their own routers choose: so an error in
one layer does not change what later ones choose. Each router is judged by the logits that it reads
itself, which no tie and no rounding before it can excuse or accuse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

from moh_deploy.errors import BackendError
from moh_deploy.system.npz import Array
from moh_deploy.validate.edge_cases.followed_gates import read_problem
from moh_deploy.validate.edge_cases.routing_judge import (
    GateJudge,
    router_reference,
    values_mismatch,
)
from moh_deploy.validate.edge_cases.source import RoutedLayer, Sides, feeding, fixed_values

_Values = Mapping[str, Array]
Cut = Callable[[Array, Array | None], Array | None]
"""From a value of the known run, and one of the same name of another run where there is one, to
what is expected of that run; None where that is not known."""


def whole(value: Array, _: Array | None) -> Array:
    """Expect of another run what the known one has."""
    return value


@dataclass(frozen=True)
class FirstDifference:
    """Looks into two runs.

    Attributes:
        sides: The package, and how the two are run.
    """

    sides: Sides

    def sentence(self, known: _Values, inputs: _Values, cut: Cut) -> str | None:
        """Return where a run of the subject first differs; None if no layer does.

        Args:
            known: Inputs of the reference.
            inputs: Inputs of the subject.
            cut: What is expected of its inner values.
        """
        try:
            expected = self.sides.reference.open(self._seen).run(known)
            place = self._first(expected, inputs, cut)
        except BackendError:
            return None  # Nothing can be said of a run that there is not.
        if place is None:
            return None
        return f"With the gates of the reference fed to every layer, it first differs in {place}."

    def _first(self, expected: _Values, inputs: _Values, cut: Cut) -> str | None:
        # Run by itself first: its shapes tell which of the reference's gates fit this run.
        subject, policy = self.sides.subject, self.sides.policy
        free = subject.open(self._seen).run(inputs)
        # The values that layers read as their gates.
        reads = dict.fromkeys(read.value for layer in self._layers for read in layer.reads)
        fed = {
            name: array
            for name in reads
            # What is not known at this size stays as the subject's own router makes it.
            if (array := cut(expected[name], free[name])) is not None
            and array.shape == free[name].shape
        }
        runner = subject.open(self._seen, feeding(fed, self._seen))
        got = runner.run({**inputs, **fixed_values(fed)})
        # Asked of the session that ran: kernels may round more than the precision of the package.
        rule = policy.model_rule(self.sides.package.manifest.precision, runner)

        def differs(name: str) -> bool:
            reference = cut(expected[name], got[name])
            if reference is None:
                return False
            tolerance = policy.output_rule(reference.dtype.name, rule)
            return values_mismatch(name, got[name], reference, tolerance) is not None

        # The first one: with the reference gates fed, later layers differ for its sake only.
        return next(self._differences(got, differs), None)

    def _differences(self, got: _Values, differs: Callable[[str], bool]) -> Iterator[str]:
        before = ""
        for layer in self._layers:
            router, where = layer.router, f"layer '{layer.info.path}'"
            # Each layer in its order of computation: logits, router, what is read as gates,
            # attention.
            logits = {port: got[name] for port, name in router.logits.items()}
            if any(differs(name) for name in router.logits.values()):
                yield f"the logits that the router of {where} reads{before}"
            if GateJudge().mismatch("", router, logits, got[router.gates]) is not None:
                yield f"the router of {where}"
            # By the logits of this very run, so that an error before the router does not accuse it.
            made = router_reference(router, logits)
            for read in layer.reads:
                if read_problem(read, made, got) is not None:
                    yield f"what {read.reader} of {where} reads as its gates"
            if router.attention is not None and differs(router.attention):
                yield f"the attention of {where}"
            before = f", behind {where}"

    @property
    def _layers(self) -> tuple[RoutedLayer, ...]:
        return self.sides.routing.routed

    @property
    def _seen(self) -> list[str]:
        names = ((*layer.router.logits.values(), *layer.values) for layer in self._layers)
        return list(dict.fromkeys(chain.from_iterable(names)))
