"""`moh-deploy serve`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from moh_deploy.cli import options, values
from moh_deploy.cli.failure import writing_stdout

if TYPE_CHECKING:
    from moh_deploy.serving.http.server import Listening


@click.command("serve")
@options.takes(
    options.PACKAGE,
    click.option(
        "--host",
        default="127.0.0.1",
        show_default=True,
        help="Address to listen at. Whoever reaches it may ask: TLS and passwords are a proxy's.",
    ),
    click.option(
        "--port",
        type=click.IntRange(0, 65535),
        metavar="N",
        default=8000,
        show_default=True,
        help="Port to listen at; 0 for any that is free.",
    ),
    click.option(
        "--name", help="What clients call the model.  [default: the bundle's, or the name of DIR]"
    ),
    options.positive(
        "--instances", "How many batches run at the same time.  [default: cores by threads]"
    ),
    options.positive("--threads", "Threads of each instance.  [default: cores by instances]"),
    options.BATCHING,
    options.PER_HEAD,
    options.OTLP,
    options.REFERENCE,
    options.GUARD,
    options.path("--audit-log", "FILE", "Append what the guard does to this file, as JSON lines."),
    options.path("--control", "FILE", "The guard's control file: manual switch, alarms of drift."),
    options.PLANTS_FAULTS,
    options.SHADOW,
    options.SHADOW_SHARE,
    options.TRUST_CODE,
    options.positive(
        "--max-queue", "The most requests that wait; then 503, with Retry-After.", default=256
    ),
    options.positive("--max-body", "The largest body of a request, in MiB; then 413.", default=64),
    options.positive("--max-json", "The most JSON in a body, in MiB; then 413.", default=4),
    options.many(
        "--longest",
        "DIM=N",
        "The largest size of a dynamic dimension, seq=512; then 400. A long sequence is a small"
        " body, but much work. Of the batch it is --max-batch.",
        callback=values.read_all(values.parse_longest),
    ),
    options.time(
        "--read-timeout", "How long a request may take to arrive; then 408.", default="20s"
    ),
    options.time("--request-timeout", "How long it waits for its answer; then 504.", default="60s"),
    options.time(
        "--shutdown-timeout",
        "How long requests that have arrived are still answered at the end.",
        default="30s",
    ),
    options.JSON,
)
def command(as_json: bool, **given: object) -> None:
    """Serve the package, engine or bundle DIR over HTTP until Ctrl-C or SIGTERM: the Open Inference
    Protocol v2, as KServe and Triton have it, and metrics for Prometheus at /metrics.

    A worker answers; it is started again when it dies. Each first repeats a recorded run: a wrong
    answer ends the command. At the end what has arrived is answered."""
    from moh_deploy.api.serve import serve

    def on_ready(listening: Listening) -> None:
        from moh_deploy.system.bounded_json import to_json_text

        with writing_stdout():
            click.echo(to_json_text(listening.to_json()) if as_json else listening.to_text())

    serve(**given, on_ready=on_ready)  # type: ignore[arg-type]
