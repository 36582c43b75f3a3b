"""Refuse options that cannot be right before PyTorch is imported, which takes seconds."""

from __future__ import annotations

import os
import re
from pathlib import Path

from moh_deploy.config.export_config import ExportConfig, resolved_config
from moh_deploy.config.options import ExportOptions, ModelOptions
from moh_deploy.errors import CheckpointError, ConfigError
from moh_deploy.system.user_code import check_code_dirs

# `https://host/...`, from which `Path` takes a slash.
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*):/+(.*)")
_OF_HUB = re.compile(r"(?:www\.)?huggingface\.co/([\w.-]+/[\w.-]+)")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_FILES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".json", ".pt2", ".onnx")


def checked_config(options: ModelOptions) -> ExportConfig:
    """Check the paths of options, and read the configuration that they name.

    Raises:
        CheckpointError: There is no model.
        ConfigError: Another path does not exist; or as `resolved_config` does.
    """
    if isinstance(options.model, (str, Path)):
        require_model(Path(options.model))
    check_code_dirs(options.code_dirs)
    inputs = options.inputs if isinstance(options, ExportOptions) else None
    if isinstance(inputs, Path) and not os.path.lexists(inputs):
        raise ConfigError(f"{inputs} does not exist.")
    return resolved_config(options)


def require_model(path: Path) -> None:
    """Check that a model is there.

    Raises:
        CheckpointError: It is not; of an address, or a name of Hugging Face's hub, how to get it.
    """
    try:
        os.stat(path)
        return
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError:  # explained where the file is read
        return
    if address := _ADDRESS.fullmatch(str(path)):
        scheme, rest = address.groups()
        named = _OF_HUB.match(rest)
        raise CheckpointError(
            f"{scheme}://{rest} is an address, expected a file or a directory.",
            hint=_download(named[1]) if named else "Nothing is downloaded here: download it first.",
        )
    is_id = _HUB_ID.fullmatch(str(path)) and path.suffix not in _FILES and not path.parent.exists()
    raise CheckpointError(
        f"{path}: no such file or directory.", hint=_download(str(path)) if is_id else None
    )


def _download(name: str) -> str:
    folder = name.partition("/")[2]
    return (
        f"Nothing is downloaded here: hf download {name} --local-dir {folder}, and give the"
        f" directory {folder}."
    )
