"""What a model directory holds, as Hugging Face lays it out: config, weights, tokenizer, code."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from moh_deploy.errors import CheckpointError
from moh_deploy.package import TOKENIZER_FILES
from moh_deploy.system.bounded_file import open_regular
from moh_deploy.system.bounded_json import read_json

CONFIG_FILE = "config.json"
# In the order in which they are looked for: what can be mapped from disk first.
_WEIGHTS = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)


@dataclass(frozen=True)
class ModelDirectory:
    """A directory that holds a model."""

    root: Path  # the directory
    config: Mapping[str, object]  # the content of its `config.json`
    weights: Path  # the file with its weights, or the index of its shards
    tokenizer: tuple[Path, ...]  # its tokenizer's files, those that there are

    @property
    def config_path(self) -> Path:
        return self.root / CONFIG_FILE

    def text(self, key: str) -> str | None:
        """Return a value of the config that has to be text; None where there is none.

        Raises:
            CheckpointError: It is something else.
        """
        value = self.config.get(key)
        if value is None or isinstance(value, str):
            return value
        raise CheckpointError(f"{self.config_path}: {key} is {value!r}, expected text.")

    @property
    def architecture(self) -> str | None:
        """The class that the config's `architectures` names first."""
        named = self.config.get("architectures")
        first = named[0] if isinstance(named, list) and named else None
        return first if isinstance(first, str) else None


def read_model_directory(root: Path) -> ModelDirectory:
    """Read the config of a model directory, and find its other files.

    Raises:
        CheckpointError: It has no config or no weights, or its config or tokenizer cannot be read.
    """
    path = root / CONFIG_FILE
    patterns = ("*.index.json", "*.safetensors", "*.pt2", "*.pt", "*.pth", "*.bin", "*.onnx")
    others = [file for pattern in patterns for file in sorted(root.glob(pattern))]
    meant = f"Did you mean '{others[0]}'?" if others else None
    try:
        config = read_json(path, error=CheckpointError)
    except FileNotFoundError:
        raise CheckpointError(
            f"{root}: is a directory without {CONFIG_FILE}; expected a checkpoint file, or a model"
            " directory.",
            hint=meant,
        ) from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: holds a JSON {type(config).__name__}, expected an object.")
    if config.get("quantization_config"):
        raise CheckpointError(
            f"{path}: the weights are quantised (quantization_config).",
            hint="Export the checkpoint in floating point, then lower the package:"
            " moh-deploy precision.",
        )
    weights = next((root / name for name in _WEIGHTS if (root / name).exists()), None)
    if weights is None:
        raise CheckpointError(
            f"{root}: is a model directory without weights; expected one of {', '.join(_WEIGHTS)}.",
            hint=meant or "Copy or download them, too.",
        )
    tokenizer = tuple(root / name for name in TOKENIZER_FILES if (root / name).is_file())
    for file in tokenizer:  # an export copies them only when all else is done
        try:
            open_regular(file).close()
        except OSError as error:
            raise CheckpointError(f"{file}: cannot be read: {error.strerror}.") from error
    return ModelDirectory(root, cast("dict[str, object]", config), weights, tokenizer)
