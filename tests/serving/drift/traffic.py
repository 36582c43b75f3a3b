"""Requests to a made-up model of two layers, whose routing is drawn."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from moh_deploy.package import OnnxPackage
from moh_deploy.serving.metrics import exposition
from moh_deploy.serving.source import ServedRun
from moh_deploy.serving.telemetry import Telemetry
from moh_deploy.serving.telemetry.routing import (
    CountedLayer,
    CountLayout,
    Counts,
    RecordedWindow,
    WindowAbout,
)
from tests.edge_case_package import HEADS, inputs

SHARED, ROUTED, TOP_K, TOKENS = 2, 4, 2, 16
LAYERS = (
    CountedLayer("blocks.0", SHARED + ROUTED, SHARED, True),
    CountedLayer("blocks.1", ROUTED, None, False),
)
LAYOUT = CountLayout(LAYERS)

LIKED = (1.0, 0.5, 0.0, -0.5)
"""How much the routed heads are liked, all else equal."""


def requests(count: int, *, seed: int, liked: tuple[float, ...] = LIKED) -> Counts:
    """Draw requests, [count, columns]. The tokens of a request like much the same heads."""
    rng = np.random.default_rng(seed)
    rows = np.zeros((count, LAYOUT.width))
    # [requests, layers, tokens, heads]
    taste = rng.normal(0, 1.5, (count, 2, 1, ROUTED)) + np.array(liked)
    scores = taste + rng.normal(0, 0.5, (count, 2, TOKENS, ROUTED))
    ranked = np.sort(scores, axis=-1)
    is_on = scores >= ranked[..., -TOP_K, None]
    for number, columns in enumerate(LAYOUT.columns):
        shared = columns.layer.num_shared_heads or 0
        on = np.concatenate([np.ones((count, TOKENS, shared)), is_on[:, number]], axis=-1)
        rows[:, columns.tokens] = TOKENS
        rows[:, columns.on] = on.sum(axis=1)
        rows[:, columns.mass] = (on * (1 + np.arange(on.shape[-1]))).sum(axis=1)
        if columns.layer.has_margins:
            margins = ranked[:, number, :, -TOP_K] - ranked[:, number, :, -TOP_K - 1]
            # Some three bins of the histogram.
            which = np.digitize(margins, [0.3, 1.0])
            for bin_ in range(3):
                rows[:, columns.margins.start + 8 + bin_] = (which == bin_).sum(axis=1)
    return rows


def window(rows: Counts, digest: str = "d1") -> RecordedWindow:
    """Return requests as they were recorded, one a second."""
    about = WindowAbout(digest, LAYERS)
    return RecordedWindow(about, rows, np.ones(len(rows), np.int64), np.arange(len(rows)) * 1.0)


# A server of metrics for tests: it answers what it is told to, on a port of its own.


@contextmanager
def metrics_at(text: Callable[[], str]) -> Iterator[str]:
    """Yield the address of a server whose metrics are what `text` returns; empty: it fails."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = text().encode()
            self.send_response(200 if content else 503)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/metrics"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# Telemetry of a package that answers random gates, for tests of drift.


class RandomGates:
    """Telemetry of a package of edge cases, every run of which is read."""

    def __init__(self, package: OnnxPackage, *, per_head: bool = True, seed: int = 0) -> None:
        self.telemetry = Telemetry(package, model="m", sample_every=1, per_head=per_head)
        self._rng = np.random.default_rng(seed)

    def answer(self, times: int, *, closed: int | None = None) -> None:
        """Answer so many requests; `closed` is a head that is on for no token."""
        for _ in range(times):
            given, dims = inputs(batch=1), {"batch": 1, "seq": 5}
            self.telemetry.wanted(dims)
            values = {
                name: self._rng.random((1, 5, HEADS), np.float32) for name in self.telemetry.inner
            }
            if closed is not None:
                for value in values.values():
                    value[..., closed] = 0
            self.telemetry.saw(ServedRun(given, dims, values, (1,), 0.001, "kernels"))

    def text(self) -> str:
        return exposition(self.telemetry.families())[0]
