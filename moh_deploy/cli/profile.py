"""`moh-deploy profile`."""

from __future__ import annotations

import click

from moh_deploy.cli import options, values
from moh_deploy.cli.output import print_answer


@click.command("profile")
@options.takes(
    options.PACKAGE,
    options.many(
        "--inputs",
        "FILE.npz|DIR",
        "Requests that are known to be good, or a dump of a served model's window.",
        type=values.FILE_PATH,
        required=True,
    ),
    options.output("Reference to write.", metavar="FILE.json"),
    click.option(
        "--request-size",
        metavar="N",
        type=int,
        default=1,
        show_default=True,
        help="Samples of a request: files of inputs are cut into such.",
    ),
    click.option(
        "--window",
        metavar="N",
        type=int,
        default=256,
        show_default=True,
        help="Requests of the smallest window that `watch` will judge.",
    ),
    click.option(
        "--false-alarms",
        metavar="SHARE",
        type=float,
        default=0.001,
        show_default=True,
        help="Share of windows of unchanged traffic that may alarm.",
    ),
    options.KERNELS,
    options.JSON,
)
def command(as_json: bool, **given: object) -> None:
    """Record what the routers of the package DIR do with traffic that is known to be good, and how
    far chance strays from it: the reference of `moh-deploy watch`."""
    from moh_deploy.api.profile import profile

    print_answer(lambda progress: profile(**given, progress=progress), as_json=as_json)  # type: ignore[arg-type]
