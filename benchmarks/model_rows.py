"""Results of the model benchmark as rows and as a table."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from model_candidates import COMPILE, EAGER, MOH, MOH_OPENVINO, OPENVINO, OURS, PEERS, PLAIN_ONNX
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One model at one batch size on some number of threads: times from the same rounds.

    Attributes:
        moh_ms, moh_openvino_ms, eager_ms, plain_onnx_ms, compile_ms, openvino_ms: CPU time, median,
            on one thread; wall time, minimum, on several; None for what cannot run here. Ours come
            first, in ONNX Runtime and in OpenVINO.
        vs_eager, vs_plain_onnx: Their time over the faster one of ours; above 1 ours is faster.
        best_peer: The fastest of the four.
    """

    model: str
    batch: int
    threads: int
    moh_ms: float
    moh_openvino_ms: float | None
    eager_ms: float | None
    plain_onnx_ms: float | None
    compile_ms: float | None
    openvino_ms: float | None
    vs_eager: float | None
    vs_plain_onnx: float | None
    best_peer: str | None
    vs_best_peer: float | None

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def row_of(model: str, batch: int, threads: int, ms: Mapping[str, float]) -> Row:
    """Return the row of a model.

    Args:
        ms: Candidate to its time; all but ours in ONNX Runtime may be absent.
    """
    peers = {name: ms[name] for name in PEERS if name in ms}
    best = min(peers, key=lambda name: peers[name], default=None)
    ours = min(ms[name] for name in OURS if name in ms)

    def versus(name: str | None) -> float | None:
        return None if name is None or name not in peers else peers[name] / ours

    return Row(
        model=model,
        batch=batch,
        threads=threads,
        moh_ms=ms[MOH],
        moh_openvino_ms=ms.get(MOH_OPENVINO),
        eager_ms=peers.get(EAGER),
        plain_onnx_ms=peers.get(PLAIN_ONNX),
        compile_ms=peers.get(COMPILE),
        openvino_ms=peers.get(OPENVINO),
        vs_eager=versus(EAGER),
        vs_plain_onnx=versus(PLAIN_ONNX),
        best_peer=best,
        vs_best_peer=versus(best),
    )


def table_of(rows: Sequence[Row]) -> Table:
    """Return the rows as a table of milliseconds and ratios."""
    table = Table(
        title="CPU time on one thread (medians), wall time on several (minima), ms a run",
        title_justify="left",
    )
    for heading in ("model", "batch", "threads"):
        table.add_column(heading, no_wrap=True)
    for heading in ("moh", "moh, OpenVINO", "eager", "plain ONNX", "compile", "OpenVINO"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("vs eager", "vs plain ONNX", "vs best peer"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*_cells(row))
    return table


def _cells(row: Row) -> list[str]:
    ours = (row.moh_ms, row.moh_openvino_ms)
    times = (*ours, row.eager_ms, row.plain_onnx_ms, row.compile_ms, row.openvino_ms)
    best = _times(row.vs_best_peer)
    return [
        row.model,
        str(row.batch),
        str(row.threads),
        *("-" if ms is None else f"{ms:.4g}" for ms in times),
        _times(row.vs_eager),
        _times(row.vs_plain_onnx),
        best if row.best_peer is None else f"{best} ({row.best_peer})",
    ]


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"
