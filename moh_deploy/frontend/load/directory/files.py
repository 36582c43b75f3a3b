"""What a model directory holds, as Hugging Face lays it out: config, weights, tokenizer, code."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from moh_deploy.errors import CheckpointError, ConfigError
from moh_deploy.package import TOKENIZER_FILES
from moh_deploy.system.bounded_file import open_regular, read_text
from moh_deploy.system.bounded_json import read_json

CONFIG_FILE = "config.json"
# In the order in which they are looked for: what can be mapped from disk first.
_WEIGHTS = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
_CAUSAL_LM = "AutoModelForCausalLM"
_MOST_SOURCE_BYTES = 1 << 24


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

    def auto_class(self, kind: str, *, beside: Sequence[Path] = ()) -> str | None:
        """Return `FILE.CLASS`, as `auto_map` has it for `AutoModelForCausalLM` and such.

        Args:
            beside: Where code of another repository may lie, besides the directory.

        Raises:
            CheckpointError: It names code of another repository, or is no such name.
        """
        auto_map = self.config.get("auto_map")
        named = auto_map.get(kind) if isinstance(auto_map, dict) else None
        if named is None:
            return None
        # `owner/name--file.Class` is code that Hugging Face would download.
        _, elsewhere, local = str(named).rpartition("--")
        module = local.partition(".")[0]
        if not isinstance(named, str) or local.count(".") != 1:
            raise CheckpointError(
                f"{self.config_path}: auto_map.{kind} is {named!r}, expected FILE.CLASS."
            )
        folders = (self.root, *beside)
        if elsewhere and not any((folder / f"{module}.py").is_file() for folder in folders):
            raise CheckpointError(
                f"{self.config_path}: auto_map.{kind} names code of another repository,"
                f" '{named}'; nothing is downloaded here.",
                hint=f"Put {module}.py into {self.root}, or name its directory with --code-dir.",
            )
        return local

    @property
    def architecture(self) -> str | None:
        """The class that the config's `architectures` names first."""
        named = self.config.get("architectures")
        first = named[0] if isinstance(named, list) and named else None
        return first if isinstance(first, str) else None

    def find_code(
        self, code_dirs: Sequence[Path], *, trust_code: bool
    ) -> tuple[Path, str, str | None] | None:
        """Find the file that defines the model's class: in the user's code, or in the directory.

        Returns:
            The file, the class, and `FILE.CLASS` of its config, where the model's class does not
            say it; None where the directory names no file.

        Raises:
            CheckpointError: The directory's file is missing, or running it is not allowed.
        """
        named = self.auto_class(_CAUSAL_LM, beside=code_dirs)
        name = named.partition(".")[2] if named else self.architecture
        defines = re.compile(rf"^class {re.escape(name or '')}\b", re.MULTILINE)
        for folder in code_dirs if name else ():
            # An editor's lock may be a link to nothing.
            for file in sorted(path for path in folder.glob("*.py") if path.is_file()):
                text = read_text(file, most_bytes=_MOST_SOURCE_BYTES, error=ConfigError)
                if name and defines.search(text):
                    return file, name, self.auto_class("AutoConfig", beside=code_dirs)
        named = self.auto_class(_CAUSAL_LM)
        if named is None:
            return None
        module, _, name = named.partition(".")
        file = self.root / f"{module}.py"
        if not file.is_file():
            raise CheckpointError(
                f"{self.config_path}: auto_map names the class '{name}' of {file.name}, which is"
                " not there.",
                hint="Copy it there, or name its directory with --code-dir.",
            )
        if not trust_code:
            raise CheckpointError(
                f"{self.root}: the model is built by code of its own, {file.name}, and loading it"
                " runs that code.",
                hint="Read it, then pass --trust-code if you trust it.",
            )
        return file, name, self.auto_class("AutoConfig")


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
