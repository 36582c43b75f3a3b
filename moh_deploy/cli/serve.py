"""`moh-deploy serve`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from moh_deploy.cli import options
from moh_deploy.cli.failure import writing_stdout

if TYPE_CHECKING:
    from moh_deploy.serving.http.server import Listening


@click.command("serve")
@options.takes(*options.SERVE)
def command(as_json: bool, **given: object) -> None:
    """Serve the package, engine or bundle DIR over HTTP until Ctrl-C or SIGTERM: the Open Inference
    Protocol v2, as KServe and Triton have it, and metrics for Prometheus at /metrics.

    A worker answers; it is started again when it dies. At the end what has arrived is answered."""
    from moh_deploy.api.serve import serve

    def on_ready(listening: Listening) -> None:
        from moh_deploy.system.json_text import to_json_text

        with writing_stdout():
            click.echo(to_json_text(listening.to_json()) if as_json else listening.to_text())

    serve(**given, on_ready=on_ready)  # type: ignore[arg-type]
