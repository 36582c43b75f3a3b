"""Where the time of a model goes: by type of operator, in the plain export and in our package."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from model_candidates import MOH, PLAIN_ONNX, moh_nodes, on_ort, original
from model_subjects import Prepared
from model_timing import check, reference_of
from ort_session import kernel_session, plain_session
from rich.table import Table

from moh_deploy.runtime.kernel_use import KernelUse
from moh_deploy.system.npz import Array

_KERNEL_TIME = "_kernel_time"


@dataclass(frozen=True)
class Share:
    """What the nodes of one operator take in one run.

    Attributes:
        ms: Sum over the nodes of the median over the runs, by the clock on the wall.
    """

    nodes: int = 0
    ms: float = 0.0


@dataclass(frozen=True)
class Line:
    """One operator on both sides; a side without such nodes takes no time."""

    op: str
    plain: Share
    moh: Share


@dataclass(frozen=True)
class Profile:
    """Where the time of one run goes on one thread.

    Attributes:
        lines: One an operator, the longest first.
    """

    model: str
    batch: int
    lines: list[Line]

    def to_json(self) -> dict[str, object]:
        return {
            "model": self.model,
            "batch": self.batch,
            "ops": [asdict(line) for line in self.lines],
        }

    def table(self) -> Table:
        """Return the operators; those of less than a thousandth of the time are one line."""
        title = (
            f"{self.model}, batch {self.batch}, one thread: ms of a run by operator (each node's"
            " time by the clock on the wall)"
        )
        table = Table(title=title, title_justify="left")
        table.add_column("operator", no_wrap=True)
        for heading in ("nodes", "plain ms", "%", "nodes", "moh ms", "%"):
            table.add_column(heading, justify="right", no_wrap=True)
        total = _together("all", self.lines)
        limit = 1e-3 * max(total.plain.ms, total.moh.ms)
        short = [item for item in self.lines if max(item.plain.ms, item.moh.ms) < limit]
        rest = [_together(f"{len(short)} others", short)] if short else []
        for line in [*(item for item in self.lines if item not in short), *rest, total]:
            table.add_row(line.op, *_cells(line.plain, total.plain), *_cells(line.moh, total.moh))
        return table


def profile_both(
    prepared: Prepared,
    inputs: Mapping[str, Array],
    kernel: KernelUse,
    *,
    repeats: int,
    scratch: Path,
) -> list[Line]:
    """Run both sides in turn on one thread, and return their operators, the longest first.

    Args:
        scratch: An empty folder.

    Raises:
        Unusable: A side cannot run.
        WrongOutput: A side does not compute the original.
    """
    path = prepared.package.model_path
    ours, _ = kernel_session(path, moh_nodes(path), kernel, threads=1, profile=scratch / MOH)
    plain = plain_session(prepared.plain, threads=1, profile=scratch / PLAIN_ONNX)
    sides = [on_ort(PLAIN_ONNX, plain, inputs), on_ort(MOH, ours, inputs)]
    names = [output.name for output in prepared.package.manifest.outputs]
    reference = reference_of(original(prepared, inputs), names, prepared.example)
    for side in sides:  # Also warms up: the first run is not counted.
        check(side, side.run(), reference)
    for _ in range(repeats):
        for side in sides:
            side.run()
    return _lines(*(read_profile(Path(item.end_profiling())) for item in (plain, ours)))


def read_profile(file: Path) -> dict[str, Share]:
    """Return operator type to what its nodes take, from a profile whose first run is left out."""
    runs_ms: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in json.loads(file.read_text()):
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL_TIME):
            runs_ms[event["args"]["op_name"], event["name"]].append(event["dur"] * 1e-3)
    shares: dict[str, Share] = defaultdict(Share)
    for (op, _), ms in runs_ms.items():
        sofar = shares[op]
        shares[op] = Share(sofar.nodes + 1, sofar.ms + median(ms[1:]))
    return dict(shares)


def _lines(plain: Mapping[str, Share], ours: Mapping[str, Share]) -> list[Line]:
    lines = [Line(op, plain.get(op, Share()), ours.get(op, Share())) for op in {**plain, **ours}]
    return sorted(lines, key=lambda line: -max(line.plain.ms, line.moh.ms))


def _together(name: str, lines: Sequence[Line]) -> Line:
    return Line(name, _sum([line.plain for line in lines]), _sum([line.moh for line in lines]))


def _sum(shares: Sequence[Share]) -> Share:
    return Share(sum(share.nodes for share in shares), sum(share.ms for share in shares))


def _cells(share: Share, total: Share) -> tuple[str, str, str]:
    if not share.nodes:
        return "-", "-", "-"
    return str(share.nodes), f"{share.ms:.2f}", f"{100 * share.ms / total.ms:.1f}"
