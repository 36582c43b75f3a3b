"""Find the first layer in which a run differs from the reference.

All layers attend by the gates of the reference, whatever their own routers choose: so an error in
one layer does not change what later ones choose. Each router is judged by the logits that it reads
itself, which no tie and no rounding before it can excuse or accuse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx

from moh_deploy.errors import BackendError
from moh_deploy.graph.fixed_routing import fix_routing, fixed_input
from moh_deploy.package import OnnxPackage
from moh_deploy.system.npz import Array
from moh_deploy.validate.edge_cases.followed_gates import read_problem
from moh_deploy.validate.edge_cases.routed_layer import RoutedLayer
from moh_deploy.validate.edge_cases.routing_judge import (
    GateJudge,
    router_reference,
    values_mismatch,
)
from moh_deploy.validate.edge_cases.source import Source
from moh_deploy.validate.policy import Policy
from moh_deploy.validate.tolerances import output_rule, rules_of

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
        package: The package.
        layers: Its layers that have a MoHRouter.
        subject: The package as it is to be judged.
        reference: Its function bodies.
        policy: What counts as equal.
    """

    package: OnnxPackage
    layers: Sequence[RoutedLayer]
    subject: Source
    reference: Source
    policy: Policy

    def sentence(self, known: _Values, inputs: _Values, cut: Cut) -> str | None:
        """Return where a run of the subject first differs; None if no layer does.

        Args:
            known: Inputs of the reference.
            inputs: Inputs of the subject.
            cut: What is expected of its inner values.
        """
        try:
            expected = self.reference.open(self._seen).run(known)
            place = self._first(expected, inputs, cut)
        except BackendError:
            return None  # Nothing can be said of a run that there is not.
        return (
            None
            if place is None
            else (
                f"With the gates of the reference fed to every layer, it first differs in {place}."
            )
        )

    def _first(self, expected: _Values, inputs: _Values, cut: Cut) -> str | None:
        # Run by itself first: its shapes tell which of the reference's gates fit this run.
        free = self.subject.open(self._seen).run(inputs)
        fed = {
            name: array
            for name in self._fed
            # What is not known at this size stays as the subject's own router makes it.
            if (array := cut(expected[name], free[name])) is not None
            and array.shape == free[name].shape
        }

        def change(graph: onnx.GraphProto) -> None:
            known = {one.name for one in graph.output}
            graph.output.extend(
                onnx.ValueInfoProto(name=name) for name in self._seen if name not in known
            )
            fix_routing(graph, fed)

        runner = self.subject.open(self._seen, change)
        got = runner.run({**inputs, **{fixed_input(name): one for name, one in fed.items()}})
        # Asked of the session that ran: kernels may round more than the precision of the package.
        names = rules_of(self.package.manifest.precision, runner)

        def differs(name: str) -> bool:
            reference = cut(expected[name], got[name])
            if reference is None:
                return False
            dtype, rule = reference.dtype.name, self.policy.rule
            tolerance = output_rule(dtype, rule(dtype), *map(rule, names))
            return values_mismatch(name, got[name], reference, tolerance) is not None

        # The first one: with the reference gates fed, later layers differ for its sake only.
        return next(self._differences(got, differs), None)

    def _differences(self, got: _Values, differs: Callable[[str], bool]) -> Iterator[str]:
        before = ""
        for layer in self.layers:
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
    def _fed(self) -> list[str]:
        """The values that layers read as their gates."""
        return list(dict.fromkeys(read.value for one in self.layers for read in one.reads))

    @property
    def _seen(self) -> list[str]:
        return list(
            dict.fromkeys(
                name for one in self.layers for name in (*one.router.logits.values(), *one.values)
            )
        )
