"""What `--against` names: checkpoints are told from all else here, since they need PyTorch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moh_deploy.cli.original import given_model_options, open_original
from moh_deploy.errors import ConfigError

if TYPE_CHECKING:
    from moh_deploy.validate.reference import Reference


def named_references(
    against: Sequence[str], loading: Mapping[str, object], shared: Sequence[str] = ()
) -> list[str | Reference]:
    """Return checkpoints as references that load them, and all else as it is.

    Args:
        loading: The options that say how a checkpoint is loaded, by field of `ModelOptions`.
        shared: Those of them that say something else, too.

    Raises:
        ConfigError: There are such options, and no checkpoint.
    """
    given = given_model_options({k: v for k, v in loading.items() if k not in shared})
    if given and not any(map(_is_checkpoint, against)):
        raise ConfigError(
            f"{', '.join(given)} says how a checkpoint is loaded, but --against names none.",
            hint="Add --against CHECKPOINT, or leave it out.",
        )
    return [
        open_original(Path(name), loading) if _is_checkpoint(name) else name for name in against
    ]


def _is_checkpoint(named: str) -> bool:
    from moh_deploy.validate.references import WORDS

    path = Path(named)
    if named in WORDS:
        return False
    # A model directory; a package has a manifest, and no config.
    has = {name: os.path.isfile(path / name) for name in ("config.json", "manifest.json")}
    is_directory = has["config.json"] and not has["manifest.json"]
    return is_directory or (os.path.isfile(path) and path.suffix != ".onnx")
