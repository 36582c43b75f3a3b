"""The measurements of a comparison: what verdicts rest on, and what else is worth knowing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from moh_deploy.decision.decide import ArmEvidence
from moh_deploy.package import OnnxPackage
from moh_deploy.perf.bench.latency import Timing
from moh_deploy.runtime.base import Description, Variant
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.system.npz import Array, BoolArray
from moh_deploy.validate.reference.differences import Float64Array

# Count how evenly routers use their heads: dead ones, those that are always open, entropy.


@dataclass(frozen=True)
class LayerRouting:
    """The heads that one layer opened.

    Attributes:
        path: The layer.
        heads: How many it has.
        tokens: Of how many tokens.
        open_share: Share of the gates that were not 0.
        dead: Heads that were open for no token.
        always_open: Routed heads that were open for every token; shared ones are meant to be.
        entropy: Of the loads of routed heads: 1 where all are used alike, 0 where one is used;
            None where there is nothing to choose.
    """

    path: str
    heads: int
    tokens: int
    open_share: float
    dead: int
    always_open: int
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
    """All arms at one set of sizes.

    Attributes:
        inputs: `recorded`, `random`, or the file whose first samples they are.
        timings: Name of each arm to its rounds.
        without_routers: The same of those that also ran without their routers.
    """

    inputs: str
    sizes: Mapping[str, int]
    samples: int
    timings: Mapping[str, Timing]
    without_routers: Mapping[str, Timing]


@dataclass(frozen=True)
class EdgeCases:
    """Counts of the edge cases of `moh-deploy probe` that an arm passed and failed."""

    passed: int
    failed: int
    failures: tuple[str, ...]


@dataclass(frozen=True)
class ArmFacts:
    """Memory, skipped work, routing and edge cases of one arm.

    Attributes:
        memory_bytes: The most that a process had that loaded it and ran it once.
        skipped_share: Share of the rows of attention that it did not compute.
        not_measured: Name of what is missing to the reason.
    """

    memory_bytes: int | None = None
    skipped_share: float | None = None
    routing: tuple[LayerRouting, ...] = ()
    edge_cases: EdgeCases | None = None
    not_measured: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class MeasuredArms:
    """All that was measured of all arms."""

    evidence: ArmEvidence
    runs: Sequence[SizedRun]
    facts: Mapping[str, ArmFacts]
    described: Mapping[str, Description]
