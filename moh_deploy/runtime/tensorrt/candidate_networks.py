"""Make the networks of candidates, one node each, and have them timed by a process of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import onnx_ir as ir

from moh_deploy.config.dims import size_at
from moh_deploy.errors import BackendError
from moh_deploy.graph.layer_models import node_model
from moh_deploy.graph.sequences import lower_to_tensorrt
from moh_deploy.ops import op_names
from moh_deploy.runtime.tensorrt.build_plan import BuildPlan
from moh_deploy.runtime.tensorrt.build_process import BuildProcess
from moh_deploy.runtime.tensorrt.candidates import (
    AttentionCandidates,
    AttentionWay,
    ChosenWay,
    choose,
    unknown_sizes,
)
from moh_deploy.runtime.tensorrt.engine_graph import PackageGraph
from moh_deploy.runtime.tensorrt.messages import BuildRequest, TimingAnswer, TimingRequest
from moh_deploy.runtime.tensorrt.profiles import Profile, opt_sizes, shapes
from moh_deploy.system.progress import Progress

# Estimates of what runs an attention fastest, for builds in which nothing can be timed.
#
# Not measured: these are from a simulation of the kernel's schedule, with the instructions
# that it was compiled to, beside published times of attention kernels (docs/adr/0058), without a
# mask: with one the kernel leaves out what it hides, and a rival computes all of it. Break-even
# shares are good to a tenth or so. What a build with TensorRT times on its GPU takes their place.

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
_ESTIMATED = "by a table of estimates, not measured"


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
    query = candidates.query  # [B, S, H*D] or [B, H, S, D]
    in_half = query.dtype != "float32"
    # What is best of TensorRT's own.
    own: AttentionWay = "fused" if in_half and "fused" in candidates.possible else "function"
    if "kernel" not in candidates.possible:
        why = "TensorRT has one kernel for attention"
        if own == "function":
            why = candidates.why_not.get("fused", _IN_FLOAT32)
        return ChosenWay(own, f"{_ESTIMATED}: {why}")
    if candidates.op != op_names.ATTENTION:
        return ChosenWay("kernel", f"{_ESTIMATED}: nothing of TensorRT's fuses {candidates.op}")
    if not in_half:
        return ChosenWay("kernel", f"{_ESTIMATED}: {_IN_FLOAT32}")
    sizes = [opt_sizes(profile) for profile in profiles] or [{}]
    queries = [size_at(query.shape[-2], size) for size in sizes]
    if all(number is not None and number <= _FEW_QUERIES for number in queries):
        return ChosenWay(
            "kernel", f"{_ESTIMATED}: up to {_FEW_QUERIES} queries, gates cost no launch"
        )
    head_dim = size_at(query.shape[-1], {}) or 0
    if len(query.shape) != 4:
        head_dim //= candidates.num_heads
    column = 0 if head_dim <= _SMALL_HEAD else 1
    unknown = [target for target in targets if target not in _BREAK_EVEN]
    if unknown:
        return ChosenWay(own, f"{_ESTIMATED}: no estimate for compute capability {unknown[0]}")
    # The target on which the kernel has to have the fewest open gates decides.
    target = min(targets, key=lambda target: _BREAK_EVEN[target][column])
    limit = _BREAK_EVEN[target][column]
    return ChosenWay(
        own if candidates.open_share > limit else "kernel",
        f"{_ESTIMATED}: {candidates.open_share:.2f} of the gates open; the kernel is as fast up to"
        f" {limit:.2f}, on {target} with heads of {head_dim}",
    )


def choose_ways(
    read: PackageGraph,
    plan: BuildPlan,
    *,
    here: str | None,
    timed: bool,
    folder: Path,
    progress: Progress,
) -> dict[str, ChosenWay]:
    """Return the name of each attention node to what runs it in an engine.

    Args:
        read: The package's graph, not lowered yet.
        plan: What the engine is for.
        here: Compute capability of this machine's GPU; None: it does not matter.
        timed: Candidates are to be timed, where that can be done.
        folder: Where their networks may be written.
        progress: What to report steps to.
    """
    targets = plan.targets or ((here,) if here is not None else ())
    estimate = partial(estimated_choice, profiles=plan.profiles, targets=targets)
    # What measures nothing when it builds need not have a GPU to do so.
    if not (timed and plan.flavour.has_timing_cache):
        return choose(read.candidates, measure=None, estimate=estimate)
    with CandidateTimer(read.model, plan, folder, progress) as timer:
        return choose(read.candidates, measure=timer.measure, estimate=estimate)


def candidate_requests(
    model: ir.Model, candidates: AttentionCandidates, plan: BuildPlan, folder: Path
) -> dict[str, BuildRequest]:
    """Write a network of one node for each way in which it may run.

    Args:
        model: The package's model, not lowered yet.
        candidates: The candidates.
        plan: What the engine is for.
        folder: Where the networks are written, and are to be built.

    Returns:
        Way to how the network is built.
    """
    node = next(node for node in model.graph if node.name == candidates.node)
    requests: dict[str, BuildRequest] = {}
    for way in candidates.possible:
        network, path = node_model(model, node), folder / f"{way}.onnx"
        lower_to_tensorrt(
            network,
            plugin_nodes=[candidates.node] if way == "kernel" else [],
            fused_nodes=[candidates.node] if way == "fused" else [],
            open_shares={candidates.node: candidates.open_share},
            is_portable=plan.is_portable,
        )
        ir.save(network, path)
        library = plan.library if way == "kernel" else None
        requests[way] = BuildRequest(
            model=str(path),
            engine=str(folder / f"{way}.engine"),
            plugin=None if library is None else str(library.path),
            creators=() if library is None else (candidates.op,),
            embed_plugin=False,
            compute_capabilities=plan.targets,
            profiles=tuple(shapes(candidates.inputs, profile) for profile in plan.profiles),
            workspace_bytes=plan.workspace_bytes,
            hardware_compatibility=plan.hardware_compatibility,
            builder=replace(plan.builder, strip_weights=False),  # they are to run
        )
    return requests


class CandidateTimer:
    """Has candidates timed on this machine's GPU, until the block is left.

    In a process that builds nothing else: a candidate that crashes does not take the build along,
    and leaves the GPU to it as it was.

    Args:
        model: The package's model, not lowered yet.
        plan: What the engine is for.
        folder: Where it may write.
        progress: What to report steps to.
    """

    def __init__(self, model: ir.Model, plan: BuildPlan, folder: Path, progress: Progress) -> None:
        self._model, self._plan, self._progress = model, plan, progress
        self._folder = folder
        self._closing = ExitStack()
        self._process: BuildProcess | None = None
        self._gone: str | None = None
        self._timed = 0

    def __enter__(self) -> CandidateTimer:
        return self

    def __exit__(self, *error: object) -> None:
        self._closing.close()

    def measure(self, candidates: AttentionCandidates) -> TimingAnswer:
        """Return the times of the ways in which a node may run. Without a time, it says why."""
        why = self._gone
        unknown = unknown_sizes(candidates, self._plan.package.manifest.dims)
        if unknown is not None:
            why = f"{unknown}, which follows from no dimension of the package"
        if why is None:
            folder = self._folder / f"{self._timed}"
            folder.mkdir(parents=True)
            self._timed += 1
            networks = candidate_requests(self._model, candidates, self._plan, folder)
            request = TimingRequest(networks, dict(candidates.fills), candidates.open_share)
            try:
                if self._process is None:
                    log = self._folder / "timing.log"
                    process = BuildProcess(self._plan.flavour, folder=self._folder, log=log)
                    self._process = self._closing.enter_context(process)
                return self._process.time(request, self._progress)
            except BackendError as error:
                # Whatever killed it may do so again, and each start takes seconds.
                why = self._gone = error.message
        return TimingAnswer({}, dict.fromkeys(candidates.possible, why))
