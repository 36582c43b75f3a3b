"""Options and arguments that several commands take."""

from __future__ import annotations

from pathlib import Path

import click

package_argument = click.argument("package", metavar="DIR", type=click.Path(path_type=Path))

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout, and nothing else."
)

kernels_option = click.option(
    "--kernels",
    type=click.Choice(["auto", "off", "require"]),
    default="auto",
    show_default=True,
    help="Run MoH nodes on the kernel library where there is one, on their function bodies only,"
    " or fail if there is no kernel.",
)
