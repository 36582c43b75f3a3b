from __future__ import annotations

import click

from moh_deploy.cli import options


def test_options_are_shown_in_the_order_in_which_they_are_given():
    first, second = click.option("--first"), click.option("--second")

    @click.command("any")
    @options.takes(first, (second, options.JSON))
    def command(**given: object) -> None: ...

    assert [one.name for one in command.params] == ["first", "second", "as_json"]
