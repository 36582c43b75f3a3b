"""Captures ops in a process that has not called them before, but has loaded their kernels."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from tests.gpu import aggregated, router
from tests.gpu.attention import KernelCall, Tensors, reference, with_gates
from tests.gpu.kernels import Bench
from tests.gpu.race import Expected, OutputCall
from tests.gpu.steps import Facts, Json, Wrong
from tests.gpu.workloads import AggregatedShape, AttentionShape, RouterShape

_DTYPE = "float16"


def capture(bench: Bench, op: str, shape: Mapping[str, Json], tactic: str = "") -> Facts:
    """Capture a call, replay it, change its inputs where they are, and replay it again.

    Raises:
        Wrong: A replay computes something else.
    """
    setup = _SETUPS[op](bench, shape, tactic)
    # As moh/cuda.h asks: what is loaded at its first launch cannot be captured in every case.
    bench.library.functions.moh_cuda_load_only(True)
    setup.call()
    bench.library.functions.moh_cuda_load_only(False)
    replay = bench.device.capture([setup.call])
    for when in ("at first", "after its inputs have changed"):
        setup.call.output.fill_(float("nan"))
        replay()
        bench.device.synchronize()
        verdict = setup.expected().judge(setup.call.output, gated=True, ours=True)
        if not verdict["right"]:
            raise Wrong(f"a replayed graph is wrong {when}", verdict)
        setup.change()
    return {}


@dataclass(frozen=True)
class _Setup:
    """A call, what it should compute with its inputs as they are, and a change of these."""

    call: OutputCall
    expected: Callable[[], Expected]
    change: Callable[[], object]


def _attention(bench: Bench, shape: Mapping[str, Json], tactic: str) -> _Setup:
    sizes = AttentionShape(**shape)
    mine, other = Tensors.draw(sizes, 0.75, getattr(torch, _DTYPE), 2, bench.device.kind)

    def expected() -> Expected:
        exact = reference(mine)
        return Expected(exact, with_gates(exact, mine.gates), bench.cases.tolerance(_DTYPE))

    def change() -> None:
        # Other heads are open: the list of rows has to be made again.
        mine.gates.copy_(other.gates)
        mine.query.copy_(other.query)

    return _Setup(KernelCall(bench, mine, tactic), expected, change)


def _aggregated(bench: Bench, shape: Mapping[str, Json], tactic: str) -> _Setup:
    sizes = AggregatedShape(**shape)
    mine, other = aggregated.draw(sizes, 0.75, getattr(torch, _DTYPE), 0, bench.device.kind)
    return _Setup(
        aggregated.KernelCall(bench, mine),
        lambda: aggregated.expected(mine, bench.cases.tolerance(_DTYPE)),
        lambda: [t.copy_(o) for t, o in zip(mine.all(), other.all(), strict=True)],
    )


def _router(bench: Bench, shape: Mapping[str, Json], tactic: str) -> _Setup:
    sizes = RouterShape(**shape)
    mine, other = router.draw(sizes, getattr(torch, _DTYPE), 0, bench.device.kind)
    return _Setup(
        router.KernelCall(bench, mine),
        lambda: router.expected(mine, bench.cases.tolerance(_DTYPE)),
        lambda: mine.routed.copy_(other.routed),
    )


_SETUPS = {
    "MoHAttention": _attention,
    "MoHAggregatedAttention": _aggregated,
    "MoHRouter": _router,
}
