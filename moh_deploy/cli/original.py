"""The original model beside a package, loaded from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from moh_deploy.errors import ConfigError

if TYPE_CHECKING:
    from moh_deploy.cli.options import LoadingSettings
    from moh_deploy.frontend.prove.eager import EagerModel
    from moh_deploy.system.progress import Progress

_FLAGS = {"overrides": "--set", "code_dirs": "--code-dir"}


def refuse_settings(loading: Mapping[str, object], but: str, hint: str) -> None:
    """Refuse loading options without a checkpoint."""
    given = [_FLAGS.get(k, f"--{k.replace('_', '-')}") for k, value in loading.items() if value]
    if given:
        raise ConfigError(f"{', '.join(given)} says how {but}.", hint=hint)


def open_original(checkpoint: Path, loading: LoadingSettings) -> EagerModel:
    """Load the model of a checkpoint.

    Raises:
        CheckpointError: It cannot be read, is not trusted, or does not fit the module.
    """
    from moh_deploy.config.check_options import checked_config
    from moh_deploy.config.options import ModelOptions

    options = ModelOptions(checkpoint, **loading)
    checked_config(options)  # before PyTorch is imported
    from moh_deploy.frontend.prove.eager import open_eager

    return open_eager(options)


def original_of(
    checkpoint: Path | None, loading: LoadingSettings, progress: Progress
) -> EagerModel | None:
    """Load the model of `--checkpoint`; None without one.

    Raises:
        ConfigError: There is no checkpoint that the options could be of.
        CheckpointError: As `open_original` does.
    """
    if checkpoint is None:
        but = "a checkpoint is loaded, but there is no --checkpoint"
        refuse_settings(loading, but, "Name the model: --checkpoint FILE.")
        return None
    with progress.step("loading the original model"):
        return open_original(checkpoint, loading)


def package_or_original(
    against: Path | None, loading: LoadingSettings, progress: Progress
) -> Path | EagerModel | None:
    """Load the original that `--against` names; return a package as it is.

    Raises:
        ConfigError: There is no original that the options could be of.
        CheckpointError: As `open_original` does.
    """
    if against is None or (against / "manifest.json").is_file():
        named = "none" if against is None else "a package"
        but = f"the original of --against is loaded, but --against names {named}"
        refuse_settings(loading, but, "Leave it out, or name a checkpoint or model directory.")
        return against
    with progress.step("loading the original model"):
        return open_original(against, loading)
