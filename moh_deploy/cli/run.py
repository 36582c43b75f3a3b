"""`moh-deploy run`."""

from __future__ import annotations

import click

from moh_deploy.cli import options
from moh_deploy.cli.output import print_answer


@click.command("run")
@options.takes(
    options.PACKAGE,
    options.path(
        "--inputs",
        "FILE.npz",
        "Inputs, named as in the model; or all of other names, in its order.",
        required=True,
    ),
    options.path(
        "--outputs",
        "FILE.npz",
        "Where to write the outputs, named as in the model; an earlier npz file is replaced.",
        required=True,
    ),
    options.RUNTIME,
    options.KERNELS,
    options.JSON,
)
def command(as_json: bool, **given: object) -> None:
    """Run the package DIR once, or the engine DIR with its TensorRT."""
    from moh_deploy.api.run import run

    print_answer(lambda progress: run(**given, progress=progress), as_json=as_json)  # type: ignore[arg-type]
