"""Refuse files that name code or pickles, unless the user's own option trusts them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from moh_deploy.config.schema_errors import shown_value
from moh_deploy.errors import ConfigError


def require_trust(
    source: str,
    named: Mapping[str, object],
    option: Literal["--trust-code", "--trust-pickle"],
    *,
    is_given: bool,
) -> None:
    """Refuse a file that makes us run code of its choice, before anything is imported.

    What options name (`--factory`, `--code-dir`, `--metric`) needs no trust: the user chose it.

    Args:
        source: The file, or `--set`.
        named: Key in the file to its value; empty values name nothing.
        option: The option that allows it.
        is_given: Whether the user gave that option.

    Raises:
        ConfigError: The file names something, and the option is not given.
    """
    keys = [f"{key} is {shown_value(value)}" for key, value in named.items() if value]
    if keys and not is_given:
        lines = [f"{source}: {key}, and using it runs code." for key in keys]
        raise ConfigError(
            "\n".join(lines),
            hint=f"Read the file and the code, then add {option} if you trust both (in Python:"
            f" {option.strip('-').replace('-', '_')}=True).",
        )
