"""Read a Hugging Face model directory and the class that it names."""

import ast
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import cast

from torch import nn

from moh_deploy.errors import CheckpointError, ConfigError
from moh_deploy.package import TOKENIZER_FILES
from moh_deploy.system.bounded_file import open_regular, read_text
from moh_deploy.system.bounded_json import read_json
from moh_deploy.system.user_code import describe_error, missing_module_hint

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
    # The config as its class fills it up: with its defaults. Empty before the model is built.
    settings: Mapping[str, object] = field(default_factory=dict)

    @property
    def config_path(self) -> Path:
        return self.root / CONFIG_FILE

    def text(self, key: str) -> str | None:
        """Return a value of the config that has to be text, or None.

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


# Find the class of a model directory: in code of the user's, in its own, or in transformers.
#
# Code beside a checkpoint was written for the transformers of its day. Names that are gone since,
# or have lost methods, come from `old_transformers`: imports are rewritten as that code is
# compiled. Other code keeps its imports, and no file is written.

TRANSFORMERS_HINT = "pip install 'moh-deploy[transformers]'"

_MOST_SOURCE_BYTES = 1 << 24
_PREFIX = "moh_model_code_"
_OLD_NAMES = "moh_deploy.frontend.load.old_transformers"
_NO_FLASH = "moh_deploy.frontend.load.no_flash_attention"
# Where names were, and which of them `old_transformers` has. They are taken from there only where
# the installed transformers does not have them, or has less of them.
_MOVED = {
    "transformers": ("DynamicCache",),
    "transformers.cache_utils": ("DynamicCache",),
    "transformers.modeling_attn_mask_utils": (
        "AttentionMaskConverter",
        "_prepare_4d_attention_mask",
        "_prepare_4d_causal_attention_mask",
        "_prepare_4d_causal_attention_mask_for_sdpa",
    ),
    "transformers.modeling_rope_utils": ("ROPE_INIT_FUNCTIONS",),
    "transformers.utils": ("ModelOutput", "is_torch_fx_available"),
    "transformers.utils.generic": ("ModelOutput",),
    "transformers.utils.import_utils": ("is_torch_fx_available",),
}


def model_class(
    directory: ModelDirectory, code_dirs: Sequence[Path], *, trust_code: bool
) -> tuple[type[nn.Module], object]:
    """Return the class of a directory's model, and the config to build it with.

    Code is looked for in `code_dirs`, then in the directory itself, where running it has to be
    allowed, then in the installed transformers.

    Raises:
        CheckpointError: The code is not trusted, or the config does not name a class.
        ConfigError: The code cannot be imported.
    """
    source, config_class = _find_code(directory, code_dirs, trust_code=trust_code), None
    if source is None:
        found = _of_transformers(directory)
    else:
        file, name, config_name = source
        # A class of the user's does not make the directory's own code trusted.
        folders = [file.parent, *code_dirs, *([directory.root] if trust_code else [])]
        imported = _import_beside(file, file.stem, name, folders)
        if not (isinstance(imported, type) and issubclass(imported, nn.Module)):
            raise ConfigError(f"{file}: '{name}' is no class of torch.nn.Module.")
        found = imported
        if config_name is not None:
            module, _, name = config_name.partition(".")
            config_class = _import_beside(file, module, name, folders)
    config_class = config_class or getattr(found, "config_class", None)
    values = dict(directory.config)
    if config_class is None:
        return found, SimpleNamespace(**values)
    read = getattr(config_class, "from_dict", None)
    try:
        config: object = read(values) if read is not None else config_class(**values)  # type: ignore[operator]
    except Exception as error:  # the model's own code
        raise CheckpointError(
            f"{directory.config_path}: its class {getattr(config_class, '__name__', '')} does not"
            f" take it: {describe_error(error)}."
        ) from error
    if source is not None:
        _remember_old_names(config, directory)
    return found, config


def _find_code(
    directory: ModelDirectory, code_dirs: Sequence[Path], *, trust_code: bool
) -> tuple[Path, str, str | None] | None:
    """Find the file that defines the model's class: in the user's code, or in the directory.

    Returns:
        The file, the class, and `FILE.CLASS` of its config, where the model's class does not
        say it; None where the directory names no file.

    Raises:
        CheckpointError: The directory's file is missing, or running it is not allowed.
    """
    kind = _auto_kind(directory)
    named = auto_class(directory, kind, beside=code_dirs)
    name = named.partition(".")[2] if named else directory.architecture
    defines = re.compile(rf"^class {re.escape(name or '')}\b", re.MULTILINE)
    for folder in code_dirs if name else ():
        # An editor's lock may be a link to nothing.
        for file in sorted(path for path in folder.glob("*.py") if path.is_file()):
            text = read_text(file, most_bytes=_MOST_SOURCE_BYTES, error=ConfigError)
            if name and defines.search(text):
                return file, name, auto_class(directory, "AutoConfig", beside=code_dirs)
    named = auto_class(directory, kind)
    if named is None:
        return None
    module, _, name = named.partition(".")
    file = directory.root / f"{module}.py"
    if not file.is_file():
        raise CheckpointError(
            f"{directory.config_path}: auto_map names the class '{name}' of {file.name}, which is"
            " not there.",
            hint="Copy it there, or name its directory with --code-dir.",
        )
    if not trust_code:
        raise CheckpointError(
            f"{directory.root}: the model is built by code of its own, {file.name}, and loading it"
            " runs that code.",
            hint="Read it, then pass --trust-code if you trust it.",
        )
    return file, name, auto_class(directory, "AutoConfig")


def _auto_kind(directory: ModelDirectory) -> str:
    """Return which class of `auto_map` the checkpoint is of, say `AutoModelForMaskedLM`: the one
    that `architectures` names, else the language model, else the first."""
    auto_map = directory.config.get("auto_map")
    places = auto_map if isinstance(auto_map, dict) else {}
    causal, own = "AutoModelForCausalLM", directory.architecture
    # AutoConfig, AutoTokenizer and others are no models.
    kinds = [kind for kind in places if kind.startswith(("AutoModel", "AutoBackbone"))]
    # A class that is not the checkpoint's is never silent: its weights do not fit.
    return max(
        kinds,
        key=lambda kind: (str(places[kind]).rpartition(".")[2] == own, kind == causal),
        default=causal,
    )


def auto_class(directory: ModelDirectory, kind: str, *, beside: Sequence[Path] = ()) -> str | None:
    """Return `FILE.CLASS`, as `auto_map` has it for `AutoModelForCausalLM` and such.

    Args:
        beside: Where code of another repository may lie, besides the directory.

    Raises:
        CheckpointError: It names code of another repository, or is no such name.
    """
    auto_map = directory.config.get("auto_map")
    named = auto_map.get(kind) if isinstance(auto_map, dict) else None
    if named is None:
        return None
    # `owner/name--file.Class` is code that Hugging Face would download.
    _, elsewhere, local = str(named).rpartition("--")
    module = local.partition(".")[0]
    if not isinstance(named, str) or local.count(".") != 1:
        raise CheckpointError(
            f"{directory.config_path}: auto_map.{kind} is {named!r}, expected FILE.CLASS."
        )
    folders = (directory.root, *beside)
    if elsewhere and not any((folder / f"{module}.py").is_file() for folder in folders):
        raise CheckpointError(
            f"{directory.config_path}: auto_map.{kind} names code of another repository,"
            f" '{named}'; nothing is downloaded here.",
            hint=f"Put {module}.py into {directory.root}, or name its directory with --code-dir.",
        )
    return local


def _remember_old_names(config: object, directory: ModelDirectory) -> None:
    """Let a config have what is in its file also under the names that are used there.

    Today's configs of transformers keep angles in `rope_parameters`, and show them as
    `rope_scaling`, too; code of before expects None there where nothing is scaled.
    """
    for name, value in directory.config.items():
        if not hasattr(config, name):
            setattr(config, name, value)
    if hasattr(config, "rope_parameters"):
        scaling = directory.config.get("rope_scaling")
        cls = type(config)
        shown = {"rope_scaling": property(lambda self: scaling), "__module__": cls.__module__}
        config.__class__ = type(cls.__name__, (cls,), shown)


def _of_transformers(directory: ModelDirectory) -> type[nn.Module]:
    name = directory.architecture
    if name is None:
        raise CheckpointError(
            f"{directory.config_path}: names no class of the model: neither auto_map nor"
            " architectures.",
            hint="Name what builds it with --factory MODULE:CALLABLE (and --code-dir DIR).",
        )
    try:
        transformers = importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{directory.root}: is a model of class '{name}' of transformers, which is not"
            " installed.",
            hint=TRANSFORMERS_HINT,
        ) from error
    found = getattr(transformers, name, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise CheckpointError(
            f"{directory.config_path}: architectures names '{name}', which is no model of the"
            " installed transformers, and the directory has no code of its own.",
            hint="Name the directory of the code that defines it with --code-dir.",
        )
    return found


def _import_beside(file: Path, module: str, name: str, folders: Sequence[Path]) -> object:
    """Import a class of a module whose parts are in folders: `from .part import` finds them."""
    paths = list(dict.fromkeys(str(folder.resolve()) for folder in folders))
    # Modules of two models are called the same: each directory has a package of its own.
    package = _PREFIX + hashlib.sha256(":".join(paths).encode()).hexdigest()[:12]
    if package not in sys.modules:
        made = ModuleType(package)
        made.__path__ = paths
        sys.modules[package] = made
        if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
            sys.meta_path.insert(0, _Finder())
    try:
        imported = importlib.import_module(f"{package}.{module}")
    except (Exception, SystemExit) as error:  # the model's own code
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        of_transformers = missing is not None and missing.partition(".")[0] == "transformers"
        hint = TRANSFORMERS_HINT if of_transformers else missing_module_hint(missing)
        if missing is not None and missing.startswith(_PREFIX):
            part = f"{missing.rpartition('.')[2]}.py"
            hint = f"Name the directory of {part} with --code-dir, or add --trust-code to run it."
        raise ConfigError(
            f"{file}: cannot be imported: {describe_error(error)}.", hint=hint
        ) from error
    if not hasattr(imported, name):
        raise ConfigError(f"{imported.__file__}: has no class '{name}'.")
    return getattr(imported, name)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds modules of the packages that are made here."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        folders = (path or ()) if fullname.startswith(_PREFIX) else ()
        finders = (importlib.machinery.FileFinder(at, (_Loader, [".py"])) for at in folders)
        specs = (finder.find_spec(fullname) for finder in finders)
        return next((spec for spec in specs if spec is not None), None)


class _Loader(importlib.machinery.SourceFileLoader):
    """Compiles a file with its imports rewritten, and leaves no bytecode beside it."""

    def path_stats(self, path: str) -> dict[str, int]:
        raise OSError  # of a file without a date no bytecode is read or written

    def source_to_code(self, data: object, path: str, **_: object) -> object:  # type: ignore[override]
        tree = ast.parse(data, path)  # type: ignore[call-overload]
        return compile(_Redirected().visit(tree), path, "exec", dont_inherit=True)


class _Redirected(ast.NodeTransformer):
    """Rewrites `from transformers.x import gone, there` into two imports."""

    def visit_ImportFrom(self, node: ast.ImportFrom) -> list[ast.ImportFrom]:
        replacement = _NO_FLASH if _is_flash(node.module) else _OLD_NAMES
        gone = [name for name in node.names if _is_gone(node.module, name.name, node.level)]
        kept = [name for name in node.names if name not in gone]
        parts = [(node.module, kept, node.level), (replacement, gone, 0)]
        return [
            ast.copy_location(ast.ImportFrom(module, names, level), node)
            for module, names, level in parts
            if names
        ]


def _is_gone(module: str | None, name: str, level: int) -> bool:
    if module is None or level:
        return False
    if _is_flash(module):
        return importlib.util.find_spec("flash_attn") is None
    if name not in _MOVED.get(module, ()):
        return False
    try:
        there = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return importlib.util.find_spec("transformers") is not None
    # What is there and lacks what it had: methods of a cache, the plain form of positions.
    if name == "DynamicCache":
        return not hasattr(there, "from_legacy_cache")
    if name == "ModelOutput":
        return hasattr(there, "_replace_old_cache_name")
    return name == "ROPE_INIT_FUNCTIONS" and "default" not in there


def _is_flash(module: str | None) -> bool:
    return module is not None and module.partition(".")[0] == "flash_attn"
