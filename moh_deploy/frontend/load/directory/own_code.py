"""Import a model directory's own code, with names that transformers has given up since.

Code that lies beside a checkpoint was written for the transformers of its day. What it imports
there and is gone, or has lost methods, comes from `old_transformers` instead: in that code alone,
whose imports are rewritten as it is compiled. Nobody else sees these names, and no file is written.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from moh_deploy.errors import ConfigError
from moh_deploy.system.user_code import describe_error, missing_module_hint

TRANSFORMERS_HINT = "pip install 'moh-deploy[transformers]'"

_PREFIX = "moh_model_code_"
_OLD_NAMES = "moh_deploy.frontend.load.directory.old_transformers"
_NO_FLASH = "moh_deploy.frontend.load.directory.no_flash_attention"
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


def import_beside(file: Path, module: str, name: str, folders: Sequence[Path]) -> object:
    """Import a class of a directory's code.

    Args:
        file: The file that is meant, for messages.
        module: Its name without `.py`, or that of one beside it.
        name: Of the class.
        folders: Where the code's parts are. They may import one another by `from .part import`.

    Raises:
        ConfigError: It cannot be imported, or there is no such class.
    """
    package = _package(folders)
    try:
        imported = importlib.import_module(f"{package}.{module}")
    except (Exception, SystemExit) as error:  # the model's own code
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        of_transformers = missing is not None and missing.partition(".")[0] == "transformers"
        raise ConfigError(
            f"{file}: cannot be imported: {describe_error(error)}.",
            hint=TRANSFORMERS_HINT if of_transformers else missing_module_hint(missing),
        ) from error
    if not hasattr(imported, name):
        raise ConfigError(f"{imported.__file__}: has no class '{name}'.")
    return getattr(imported, name)


def _package(folders: Sequence[Path]) -> str:
    """Return the name of a package whose modules are the files in some folders."""
    paths = list(dict.fromkeys(str(folder.resolve()) for folder in folders))
    # Modules of two models are called the same: each directory has a package of its own.
    name = _PREFIX + hashlib.sha256(":".join(paths).encode()).hexdigest()[:12]
    if name not in sys.modules:
        package = ModuleType(name)
        package.__path__ = paths
        sys.modules[name] = package
        if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
            sys.meta_path.insert(0, _Finder())
    return name


class _Finder(importlib.abc.MetaPathFinder):
    """Finds modules of the packages that are made here."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith(_PREFIX):
            return None
        for folder in path or ():
            finder = importlib.machinery.FileFinder(folder, (_Loader, [".py"]))
            spec = finder.find_spec(fullname)
            if spec is not None:
                return spec
        return None


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
