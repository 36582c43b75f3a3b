"""The original model beside a package, loaded from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from moh_deploy.errors import ConfigError

if TYPE_CHECKING:
    from moh_deploy.frontend.prove.eager import EagerModel
    from moh_deploy.system.progress import Progress

_OPTIONS = {"overrides": "--set", "code_dirs": "--code-dir"}


def taken_model_options(options: dict[str, object]) -> dict[str, object]:
    """Take the options of `model_options` out of a command's."""
    from moh_deploy.config.options import ModelOptions

    names = [field.name for field in fields(ModelOptions) if field.name in options]
    return {name: options.pop(name) for name in names}


def given_model_options(options: Mapping[str, object]) -> list[str]:
    """Return those of the options that were given, as they are written."""
    named = {name: f"--{name.replace('_', '-')}" for name in options} | _OPTIONS
    return [named[name] for name, value in options.items() if value]


def open_original(checkpoint: Path, options: Mapping[str, object]) -> EagerModel:
    """Load the model of a checkpoint.

    Args:
        options: Those of `model_options`, by field of `ModelOptions`.

    Raises:
        CheckpointError: It cannot be read, is not trusted, or does not fit the module.
    """
    from moh_deploy.config.options import ModelOptions
    from moh_deploy.frontend.prove.eager import open_eager

    return open_eager(ModelOptions(checkpoint, **options))  # type: ignore[arg-type]


def original_of(
    checkpoint: Path | None, options: Mapping[str, object], progress: Progress
) -> EagerModel | None:
    """Load the model of `--checkpoint`; None without one.

    Raises:
        ConfigError: There is no checkpoint that the options could be of.
        CheckpointError: As `open_original` does.
    """
    given = given_model_options(options)
    if checkpoint is None and given:
        raise ConfigError(
            f"{', '.join(given)} says how a checkpoint is loaded, but there is no --checkpoint.",
            hint="Name the model: --checkpoint FILE.",
        )
    if checkpoint is None:
        return None
    with progress.step("loading the original model"):
        return open_original(checkpoint, options)
