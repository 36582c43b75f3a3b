"""`--checkpoint`: the original model beside a package."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moh_deploy.frontend.eager import EagerModel
    from moh_deploy.progress import Progress

_OPTIONS = {
    "overrides": "--set",
    "code_dirs": "--code-dir",
    "state_key": "--state-key",
    "trust_pickle": "--trust-pickle",
}


def taken_model_options(options: dict[str, object]) -> dict[str, object]:
    """Take the options of `model_options` out of a command's."""
    from moh_deploy.options import ModelOptions

    names = [one.name for one in fields(ModelOptions) if one.name in options]
    return {name: options.pop(name) for name in names}


def original_of(
    checkpoint: Path | None, options: dict[str, object], progress: Progress
) -> EagerModel | None:
    """Load the model of a checkpoint; None without one.

    Args:
        options: What `taken_model_options` returned.

    Raises:
        ConfigError: There is no checkpoint that the options could be of.
        CheckpointError: It cannot be read, is not trusted, or does not fit the module.
    """
    from moh_deploy.errors import ConfigError
    from moh_deploy.options import ModelOptions

    if checkpoint is None:
        given = [_OPTIONS.get(name, f"--{name}") for name, value in options.items() if value]
        if given:
            raise ConfigError(
                f"{given[0]} says how to load the original model, but there is no --checkpoint.",
                hint="Name the model: --checkpoint FILE.",
            )
        return None
    from moh_deploy.frontend.eager import open_eager

    with progress.step("loading the original model"):
        return open_eager(ModelOptions(checkpoint, **options))  # type: ignore[arg-type]
