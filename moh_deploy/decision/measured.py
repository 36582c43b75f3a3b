"""The measurements of a comparison: what verdicts rest on, and what else is worth knowing."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from moh_deploy.decision.decide import AlternativeEvidence, ArmVerdict
from moh_deploy.decision.promise import Promise
from moh_deploy.package import OnnxPackage
from moh_deploy.perf.bench.candidate import Timing
from moh_deploy.runtime.base import Description, Variant
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.system.npz import Array, BoolArray
from moh_deploy.validate.reference.differences import Float64Array

# Count how evenly routers use their heads: dead ones, those that are always open, entropy.


@dataclass(frozen=True)
class LayerRouting:
    """The heads that one layer opened."""

    path: str  # the layer
    heads: int  # how many it has
    tokens: int  # of how many tokens
    open_share: float  # share of the gates that were not 0
    dead: int  # heads that were open for no token
    always_open: int  # routed heads that were open for every token; shared ones are meant to be
    # Of the loads of routed heads: 1 where all are used alike, 0 where one is used; None where
    # there is nothing to choose.
    entropy: float | None


def routing_bias(
    package: OnnxPackage,
    variant: Variant,
    runs: Iterable[tuple[Mapping[str, Array], BoolArray | None]],
) -> tuple[LayerRouting, ...]:
    """Run a package, and count which heads its layers open.

    Args:
        package: The package.
        variant: The way in which it is opened.
        runs: Inputs of each run, and which of its tokens count, [B, S]; None: all.

    Raises:
        BackendError: The runtime failed.
    """
    layers = package.manifest.layers
    loads: dict[str, Float64Array] = {}
    tokens = dict.fromkeys((layer.path for layer in layers), 0)
    # Gates are inner values, or inputs where a model takes them.
    with open_runner(package, variant.returning(package.gate_names)) as runner:
        for inputs, valid in runs:
            values = {**inputs, **runner.run(inputs)}
            for layer in layers:
                gates = values[layer.gates] != 0  # [B, S, H]
                # Layers of other tokens than the mask's, a pooled image say, are counted whole.
                if valid is not None and valid.shape == gates.shape[:-1]:
                    gates = gates[valid]
                counted = gates.reshape(-1, gates.shape[-1])  # [tokens, H]
                loads[layer.path] = loads.get(layer.path, np.zeros(1)) + counted.sum(axis=0)
                tokens[layer.path] += len(counted)
    return tuple(
        of_loads(layer.path, loads[layer.path], tokens[layer.path], layer.num_shared_heads or 0)
        for layer in layers
        if layer.path in loads
    )


def of_loads(path: str, loads: Float64Array, tokens: int, shared: int) -> LayerRouting:
    """Return the figures of one layer.

    Args:
        loads: For how many tokens each head was open, [H].
        tokens: How many there were.
        shared: The first so many heads are meant to be open for all.
    """
    routed = loads[shared:]
    entropy = None
    if len(routed) > 1 and routed.sum():
        used = routed[routed > 0] / routed.sum()
        # 0 - 0 would be shown as -0.
        entropy = abs(float(-(used * np.log(used)).sum() / np.log(len(routed))))
    return LayerRouting(
        path=path,
        heads=len(loads),
        tokens=tokens,
        open_share=float(loads.sum() / max(1, tokens * len(loads))),
        dead=int((loads == 0).sum()),
        always_open=int((routed == tokens).sum()),
        entropy=entropy,
    )


@dataclass(frozen=True)
class SizedRun:
    """All alternatives at one set of sizes."""

    inputs: str  # `recorded`, `random`, or the file whose first samples they are
    sizes: Mapping[str, int]
    samples: int
    timings: Mapping[str, Timing]  # name of each alternative to its rounds
    without_routers: Mapping[str, Timing]  # the same of those that also ran without their routers


@dataclass(frozen=True)
class EdgeCases:
    """Counts of the edge cases of `moh-deploy probe` that an alternative passed and failed."""

    passed: int
    failed: int
    failures: tuple[str, ...]


@dataclass(frozen=True)
class AlternativeFacts:
    """Memory, skipped work, routing and edge cases of one alternative."""

    memory_bytes: int | None = None  # the most that a process had that loaded it and ran it once
    skipped_share: float | None = None  # share of the rows of attention that it did not compute
    routing: tuple[LayerRouting, ...] = ()
    edge_cases: EdgeCases | None = None
    # Name of what is missing to the reason.
    not_measured: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class MeasuredAlternatives:
    """All that was measured of all alternatives."""

    evidence: AlternativeEvidence
    runs: Sequence[SizedRun]
    facts: Mapping[str, AlternativeFacts]
    described: Mapping[str, Description]


# The figures of each alternative that a decision rests on.


@dataclass(frozen=True)
class QualityFigure:
    """A metric of one alternative, by itself."""

    metric: str
    better: Literal["higher", "lower"]
    samples: int
    value: float  # naN if a sample has no score
    # The true value is above this, with the plan's confidence; or None.
    low: float | None
    high: float | None  # and below this


@dataclass(frozen=True)
class LatencyFigure:
    """The times of one alternative at one set of sizes."""

    sizes: dict[str, int]
    inputs: str  # `recorded`, `random`, or the file whose first samples they are
    samples: int  # in one run
    rounds: int
    p50_ms: float  # the median
    # The true median is above this, with the plan's confidence; None of too few.
    p50_low_ms: float | None
    p50_high_ms: float | None  # and below this
    quantile_ms: float  # the quantile that the plan compares
    throughput_per_s: float  # samples in a second, by the median time
    cpu_ms: float | None  # mean CPU time of a run, all threads; None where it runs elsewhere
    # Share of the time that its routers take; None where that is not measured.
    router_share: float | None
    # Mean times of at most 40 blocks of rounds, in their order; all alternatives have blocks of the
    # same rounds. `moh-deploy cost` prices these.
    block_means_ms: tuple[float, ...]
    energy_mj: None = None  # none; earlier versions counted energy


@dataclass(frozen=True)
class AlternativeReport:
    """The result of one alternative.

    Attributes:
        is_bound: It shows what could be gained, and cannot be served itself: no decision is for it.
        look: In which look the verdict was found; None of the reference.
        cpu_ms: CPU time of a run at the first of the sizes.
        edge_cases: How it came through the cases of `probe`.
        p_win: The probability of such data, were a promise just not kept; None of the reference.
        p_loss: The same, were all of them just kept.
        would_tell: How much more would tell, where it cannot be told.
        not_measured: Name of what is missing to the reason.
    """

    name: str
    kind: str
    dense: bool
    is_bound: bool
    runtime: str
    verdict: ArmVerdict | Literal["reference"]
    look: int | None
    quality: tuple[QualityFigure, ...]
    latency: tuple[LatencyFigure, ...]
    memory_mib: float | None
    cpu_ms: float | None
    skipped_share: float | None
    routing: tuple[LayerRouting, ...]
    edge_cases: EdgeCases | None
    promises: tuple[Promise, ...]
    p_win: float | None
    p_loss: float | None
    would_tell: tuple[str, ...]
    not_measured: Mapping[str, str]


@dataclass(frozen=True)
class DataFile:
    """A file of inputs or labels, with its digest."""

    path: str
    sha256: str
