"""Estimates of what runs an attention fastest, for builds in which nothing can be timed.

Nobody measured these. They are from a simulation of the kernel's schedule, with the instructions
that it was compiled to, beside published times of attention kernels (docs/adr/0058): break-even
shares are good to a tenth or so. What a build with TensorRT times on its GPU takes their place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moh_deploy.config.dims import size_at
from moh_deploy.ops import op_names
from moh_deploy.package import TensorInfo
from moh_deploy.runtime.tensorrt.candidates import AttentionCandidates, AttentionWay, ChosenWay
from moh_deploy.runtime.tensorrt.profiles import Profile, opt_sizes

# Compute capability to the largest share of open gates at which the kernel is as fast as an
# attention that TensorRT fuses: with heads of up to 64, and of more. Up to 8.9 and on 12.x both use
# the same instructions; on 9.0 the rival has wgmma, which needs large tiles to pay.
_BREAK_EVEN: Mapping[str, tuple[float, float]] = {
    "8.0": (0.80, 0.80),
    "8.6": (0.85, 0.85),
    "8.7": (0.85, 0.85),
    "8.9": (0.85, 0.85),
    "9.0": (0.75, 0.45),
    "12.0": (0.85, 0.85),
    "12.1": (0.85, 0.85),
}
_SMALL_HEAD = 64
# Up to so many queries the product with the gates, which the kernel saves a launch for, is most of
# what there is to gain, whatever is open.
_FEW_QUERIES = 256
_IN_FLOAT32 = "TensorRT fuses no attention in float32"
_NOBODY = "by a table of estimates, nobody measured"


def estimated_choice(
    candidates: AttentionCandidates,
    *,
    profiles: Sequence[Profile],
    targets: Sequence[str],
) -> ChosenWay:
    """Choose by the table.

    Args:
        candidates: The candidates; at least two are possible.
        profiles: Judged at the most queries that one is tuned for.
        targets: Compute capabilities that the engine is for: the kernel has to be right for all.
    """
    own = _own_layers(candidates)
    if "kernel" not in candidates.possible:
        return ChosenWay(own, f"{_NOBODY}: {_why_own(candidates, own)}")
    if candidates.op != op_names.ATTENTION:
        return ChosenWay("kernel", f"{_NOBODY}: nothing of TensorRT's fuses {candidates.op}")
    if candidates.query.dtype == "float32":
        return ChosenWay("kernel", f"{_NOBODY}: {_IN_FLOAT32}")
    queries = _most_queries(candidates.query, profiles)
    if queries is not None and queries <= _FEW_QUERIES:
        return ChosenWay("kernel", f"{_NOBODY}: up to {_FEW_QUERIES} queries, gates cost no launch")
    return _by_open_share(candidates, own, targets, _head_dim(candidates))


def _by_open_share(
    candidates: AttentionCandidates,
    own: AttentionWay,
    targets: Sequence[str],
    head_dim: int,
) -> ChosenWay:
    column = 0 if head_dim <= _SMALL_HEAD else 1
    for target in targets:
        limits = _BREAK_EVEN.get(target)
        if limits is None:
            return ChosenWay(own, f"{_NOBODY}: no estimate for compute capability {target}")
        if candidates.open_share > limits[column]:
            return ChosenWay(
                own,
                f"{_NOBODY}: {_compared(candidates, limits[column], target, head_dim)}",
            )
    tightest = min(targets, key=lambda target: _BREAK_EVEN[target][column])
    limit = _BREAK_EVEN[tightest][column]
    return ChosenWay("kernel", f"{_NOBODY}: {_compared(candidates, limit, tightest, head_dim)}")


def _compared(candidates: AttentionCandidates, limit: float, target: str, head_dim: int) -> str:
    return (
        f"{candidates.open_share:.2f} of the gates are open; the kernel is as fast up to"
        f" {limit:.2f}, on {target} with heads of {head_dim}"
    )


def _own_layers(candidates: AttentionCandidates) -> AttentionWay:
    """What is best of TensorRT's own."""
    in_half = candidates.query.dtype != "float32"
    return "fused" if in_half and "fused" in candidates.possible else "function"


def _why_own(candidates: AttentionCandidates, own: AttentionWay) -> str:
    if own == "fused":
        return "TensorRT has one kernel for attention"
    return candidates.why_not.get("fused", _IN_FLOAT32)


def _most_queries(query: TensorInfo, profiles: Sequence[Profile]) -> int | None:
    sizes = [opt_sizes(profile) for profile in profiles] or [{}]
    found = [size_at(query.shape[-2], size) for size in sizes]  # [B, S, H*D] or [B, H, S, D]
    known = [number for number in found if number is not None]
    return max(known) if len(known) == len(found) else None


def _head_dim(candidates: AttentionCandidates) -> int:
    last = size_at(candidates.query.shape[-1], {}) or 0
    return last if len(candidates.query.shape) == 4 else last // candidates.num_heads
