"""`moh-deploy prune`."""

from __future__ import annotations

import click

from moh_deploy.cli import options
from moh_deploy.cli.output import print_answer


@click.command("prune")
@options.takes(
    options.PACKAGE,
    click.option(
        "--keep",
        required=True,
        metavar="N|PERCENT%",
        help="Heads that each layer keeps: a number such as 12, or a share of each layer's heads"
        " such as 75%.",
    ),
    click.option(
        "--by",
        type=click.Choice(["load", "gate"]),
        default="load",
        show_default=True,
        help="Keep the heads that are open for most tokens, or those with the largest mean gate.",
    ),
    options.inputs("Count heads on these inputs instead of the recorded ones."),
    click.option(
        "--allow-whole",
        is_flag=True,
        help="Let a layer whose weights cannot be cut stay whole, with gates of 0 for the heads"
        " that are not kept.",
    ),
    options.output("The package directory to write."),
    options.JSON,
)
def command(as_json: bool, **given: object) -> None:
    """Write the package DIR with the same heads for every token: those that are used most. The
    weights of the others are cut, and there is no router. The plain rival of routing: another model
    than the original, proven equal to it with these gates fed."""
    from moh_deploy.api.prune import prune

    print_answer(lambda progress: prune(**given, progress=progress), as_json=as_json)  # type: ignore[arg-type]
