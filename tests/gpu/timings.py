"""The jobs that time an op: ours against what a user would take instead, judged in the same run."""

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import torch

from tests.gpu import aggregated, router
from tests.gpu.attention import Tensors, reference, with_gates
from tests.gpu.attention_candidates import CANDIDATES
from tests.gpu.kernels import Bench
from tests.gpu.race import Expected, race
from tests.gpu.steps import Facts, Json, Wrong
from tests.gpu.workloads import AggregatedShape, AttentionShape, Effort, RouterShape

Described = Mapping[str, Json]


def attention(
    bench: Bench,
    shape: Described,
    share: float,
    dtype: str,
    compiled: bool,
    effort: Described,
) -> Facts:
    """Time attention of a shape, for a share of open heads.

    Args:
        shape: Of an `AttentionShape`.
        compiled: Against candidates that take seconds to compile; else against all others.
        effort: Of an `Effort`.

    Raises:
        Wrong: One of our tactics computes something else.
    """
    sizes, kind = AttentionShape(**shape), getattr(torch, dtype)
    asked = _asked(bench, effort)
    count = Tensors.sets_for(sizes, kind, asked.rotated_bytes)
    sets = Tensors.draw(sizes, share, kind, count, bench.device.kind)
    exact = reference(sets[0])
    expected = Expected(exact, with_gates(exact, sets[0].gates), bench.cases.tolerance(dtype))
    candidates = [c for c in CANDIDATES if c.compiled == compiled or c.name == CANDIDATES[0].name]
    entries = {c.name: lambda c=c: c.enter(bench, sets) for c in candidates}
    ours = [c.name for c in candidates if c.ours]
    rows = race(bench.device, entries, ours, expected, asked)
    facts: Facts = {
        "shape": sizes.name,
        "share": share,
        "dtype": dtype,
        "open_share": float((sets[0].gates != 0).double().mean()),
        "sets": count,
        "tflops": sizes.flops(share) / cast(float, rows[ours[0]]["us"]) / 1e6,
    }
    return concluded(facts, rows, ours)


def aggregated_attention(
    bench: Bench, shape: Described, share: float, dtype: str, effort: Described
) -> Facts:
    """Time aggregated attention against torch's operators, as they are and compiled."""
    sizes, kind = AggregatedShape(**shape), getattr(torch, dtype)
    asked = _asked(bench, effort)
    sets = aggregated.draw(sizes, share, kind, asked.rotated_bytes, bench.device.kind)
    expected = aggregated.expected(sets[0], bench.cases.tolerance(dtype))
    entries = aggregated.entries(bench, sets)
    rows = race(bench.device, entries, [aggregated.OURS], expected, asked)
    return concluded(
        {"shape": sizes.name, "share": share, "dtype": dtype, "sets": len(sets)},
        rows,
        [aggregated.OURS],
    )


def routing(bench: Bench, shape: Described, dtype: str, effort: Described) -> Facts:
    """Time the router against torch's operators, as they are and compiled."""
    sizes, kind = RouterShape(**shape), getattr(torch, dtype)
    asked = _asked(bench, effort)
    sets = router.draw(sizes, kind, asked.rotated_bytes, bench.device.kind)
    expected = router.expected(sets[0], bench.cases.tolerance(dtype))
    rows = race(bench.device, router.entries(bench, sets), [router.OURS], expected, asked)
    facts: Facts = {"shape": sizes.name, "dtype": dtype, "sets": len(sets)}
    return concluded(facts, rows, [router.OURS])


def _asked(bench: Bench, effort: Described) -> Effort:
    asked = Effort(**effort)
    return replace(asked, rotated_bytes=max(asked.rotated_bytes, 2 * bench.device.cache_bytes()))


def concluded(facts: Facts, rows: dict[str, Facts], ours: list[str]) -> Facts:
    """Compare with the fastest of the others, and refuse what is wrong of ours."""
    mine = cast(float, rows[ours[0]]["us"])
    for name, others in _others(rows, ours).items():
        if others:
            best = min(others, key=others.__getitem__)
            facts |= {f"best_{name}": best, f"times_best_{name}": others[best] / mine}
    facts["candidates"] = cast(Json, rows)
    wrong = [name for name in ours if rows[name].get("right") is False]
    if wrong:
        errors = ", ".join(f"{name} by {rows[name]['max_error']}" for name in wrong)
        raise Wrong(f"beyond the tolerance: {errors}", facts)
    return facts


def _others(rows: dict[str, Facts], ours: list[str]) -> dict[str, dict[str, float]]:
    """Return the microseconds of others that are right: with the gates, and without them."""
    right = {name: row for name, row in rows.items() if name not in ours and row.get("right")}
    return {
        kind: {n: cast(float, row["us"]) for n, row in right.items() if row["gated"] == gated}
        for kind, gated in (("gated", True), ("plain", False))
    }
