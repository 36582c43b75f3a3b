"""Refuse files that name code or pickles, unless the user's own option trusts them."""

from __future__ import annotations

from collections.abc import Mapping

from moh_deploy.config.schema_errors import shown_value
from moh_deploy.errors import ConfigError


def require_trust(source: str, named: Mapping[str, object], option: str, *, is_given: bool) -> None:
    """Refuse a file that makes us run code of its choice, before anything is imported.

    What options name (`--factory`, `--code-dir`, `--metric`) needs no trust: the user chose it.

    Args:
        named: Key in the file to its value; empty values name nothing.

    Raises:
        ConfigError: The file names something, and the option is not given.
    """
    lines = [
        f"{source}: {key} is {shown_value(value)}, and using it runs code."
        for key, value in named.items()
        if value
    ]
    if lines and not is_given:
        raise ConfigError(
            "\n".join(lines),
            hint=f"If you trust who wrote it, add {option} (in Python:"
            f" {option.strip('-').replace('-', '_')}=True).",
        )
