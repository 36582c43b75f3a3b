"""How the time of sparse attention divides: the list of rows, the rows, the combining of splits."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Protocol, cast

import torch
from torch.profiler import ProfilerActivity, profile

from tests.gpu.attention import Tensors, kernel_calls
from tests.gpu.kernels import Bench
from tests.gpu.steps import Facts, Json, Missing
from tests.gpu.workloads import AttentionShape

KERNELS = ("compact", "attend", "combine")
_REPLAYS = 4


class Average(Protocol):
    """A kernel as the profiler sums it up."""

    @property
    def key(self) -> str: ...

    @property
    def device_time_total(self) -> float: ...

    @property
    def count(self) -> int: ...


def parts(
    bench: Bench,
    shape: Mapping[str, Json],
    share: float,
    dtype: str,
    tactic: str,
    effort: Mapping[str, Json],
) -> Facts:
    """Profile one tactic of an attention, kernel by kernel, replayed from a graph.

    Raises:
        Missing: The profiler sees no kernel of ours: there is no GPU, or it may not look at it.
    """
    sizes = AttentionShape(**shape)
    sets = Tensors.draw(sizes, share, getattr(torch, dtype), 2, bench.device.kind)
    calls = kernel_calls(bench, sets, tactic) * math.ceil(cast(int, effort["calls"]) / len(sets))
    bench.device.warm_up(calls)
    replay = bench.device.capture(calls)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(_REPLAYS):
            replay()
        bench.device.synchronize()
    times = by_kernel(profiler.key_averages())
    if not times:
        raise Missing("torch's profiler saw no kernel of ours on the device")
    facts: Facts = {"shape": sizes.name, "share": share, "dtype": dtype, "tactic": tactic}
    return {**facts, "us_by_kernel": cast(Json, times)}


def by_kernel(averages: Iterable[Average]) -> dict[str, float]:
    """Return microseconds a launch of each of our kernels."""
    total: dict[str, float] = {}
    launches: dict[str, int] = {}
    for average in averages:
        # Names come with templates and parameters: void moh::cuda::attend<...>(...).
        found = re.search(r"moh::cuda::(\w+)", average.key)
        if found is not None and found[1] in KERNELS:
            name = found[1]
            total[name] = total.get(name, 0.0) + average.device_time_total
            launches[name] = launches.get(name, 0) + average.count
    return {name: total[name] / launches[name] for name in KERNELS if launches.get(name)}
