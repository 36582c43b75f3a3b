"""Find the user's code, and import a function of it."""

import contextlib
import importlib
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

from moh_deploy.errors import ConfigError
from moh_deploy.system.suggest import did_you_mean, shortened


def find_callable(name: str, *, what: str, code_dirs: Sequence[Path]) -> Callable[..., object]:
    """Import the function that `MODULE:CALLABLE` names.

    Args:
        name: Such as `models:tiny_vit` or `package.models:Net.from_size`.
        what: What it is for, to begin errors with: `factory`.
        code_dirs: Where the user looks, for the hint; `user_code` makes them known.

    Raises:
        ConfigError: The name is malformed, cannot be imported, or is no callable.
    """
    module_name, _, attribute = name.partition(":")
    parts = [*module_name.split("."), *attribute.split(".")]
    if not all(part.isidentifier() for part in parts) or module_name.endswith(".py"):
        raise ConfigError(
            f"{what} '{name}' is malformed; expected MODULE:CALLABLE.",
            hint="Example: models:tiny_vit, for 'def tiny_vit(...)' in models.py.",
        )
    module = _import(module_name, what, code_dirs)
    return _find(module, attribute, f"{what} '{name}'")


@contextlib.contextmanager
def user_code(code_dirs: Sequence[Path]) -> Iterator[None]:
    """Run the user's code: their directories come first on sys.path, their prints go to stderr.

    The directories stay on sys.path afterwards, since a model may import more when it runs. A
    module of the same name that an earlier model brought along from elsewhere is forgotten, so that
    each model gets its own.

    Raises:
        ConfigError: A code directory does not exist.
    """
    check_code_dirs(code_dirs)
    roots = [path.resolve() for path in code_dirs]
    _forget_namesakes(roots)
    strings = [str(root) for root in roots]
    sys.path[:] = strings + [entry for entry in sys.path if entry not in strings]
    importlib.invalidate_caches()
    with contextlib.redirect_stdout(sys.stderr):
        yield


def check_code_dirs(code_dirs: Sequence[Path]) -> None:
    """Check that directories of the user's code are there.

    Raises:
        ConfigError: One is not.
    """
    for path in code_dirs:
        try:
            is_directory = path.is_dir()
        except OSError as error:
            message = f"code directory '{path}' cannot be looked up: {error.strerror}."
            raise ConfigError(message) from error
        if not is_directory:
            raise ConfigError(f"code directory '{path}' does not exist or is not a directory.")


def describe_error(error: BaseException) -> str:
    """Return `TypeError: message (models.py:12)`: an error of the user's code in one line."""
    # The innermost frame outside of this folder and the import machinery is where the user can
    # look.
    frames = traceback.extract_tb(error.__traceback__)
    ours = (str(Path(__file__).parent), "<frozen")
    own = [frame for frame in frames if not frame.filename.startswith(ours)]
    where = f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {error}{where}"


def _forget_namesakes(roots: Sequence[Path]) -> None:
    try:
        # Modules, and packages at their top. Unlike `Path.is_file`, `os.path.isfile` never raises
        # where a directory may not be entered.
        names = {
            entry.stem
            for root in roots
            for entry in root.iterdir()
            if entry.suffix == ".py" or os.path.isfile(entry / "__init__.py")
        }
    except OSError as error:
        raise ConfigError(f"code directory cannot be read: {error}.") from error
    # A user's `random.py` must not make Python forget its own; torch cannot be imported twice.
    names -= {*sys.stdlib_module_names, "__main__", "torch", __name__.partition(".")[0]}
    for name in names & sys.modules.keys():
        file = getattr(sys.modules[name], "__file__", None)
        if file is None or not any(Path(file).resolve().is_relative_to(root) for root in roots):
            stale = [m for m in sys.modules if m == name or m.startswith(f"{name}.")]
            for module_name in stale:
                del sys.modules[module_name]


def _import(module_name: str, what: str, code_dirs: Sequence[Path]) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    # A script without a main guard may parse the command line and exit.
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        # The module itself or a package around it is missing; any other is one that it imports.
        if missing is not None and f"{module_name}.".startswith(f"{missing}."):
            package = missing.partition(".")[0]
            searched = ", ".join(f"'{path}'" for path in code_dirs) or "none given"
            raise ConfigError(
                f"{what} module '{module_name}' cannot be imported: no module '{missing}'.",
                hint=_code_dir_hint(package, Path())
                if _holds_module(Path(), package)
                else f"Name the directory that holds it with --code-dir (now: {searched}).",
            ) from error
        raise ConfigError(
            f"{what} module '{module_name}' failed at import: {describe_error(error)}.",
            hint=import_hint(error),
        ) from error


def import_hint(error: BaseException, *, near: Path | None = None) -> str | None:
    """Return a hint for a module, or a name in one, that is missing; None for other errors.

    Args:
        error: What importing the user's code raised.
        near: A directory where a module may lie, besides the current one: that of the checkpoint.
    """
    if not isinstance(error, ImportError) or error.name is None:
        return None
    package, *inner = error.name.split(".")
    is_missing = isinstance(error, ModuleNotFoundError)
    if inner or not is_missing:
        try:
            found = version(package)
        except PackageNotFoundError:
            found = None
        if found is not None:
            # The version that transformers wrote a checkpoint with is in its config.json.
            where = (
                ": config.json has its transformers_version" if package == "transformers" else ""
            )
            return (
                f"{package} {found} is installed, and the code was written for another version."
                f" Install that one{where}."
            )
    if not is_missing:
        return None
    for folder in (Path(), *([near] if near else [])):
        if _holds_module(folder, package):
            return _code_dir_hint(package, folder)
    return (
        f"Install the package that provides '{package}', or name the directory that holds it with"
        " --code-dir."
    )


def _code_dir_hint(package: str, folder: Path) -> str:
    return f"'{package}' lies in '{folder}': add --code-dir {shlex.quote(str(folder))}"


def _holds_module(folder: Path, name: str) -> bool:
    # A directory that may not be read holds nothing for us.
    return os.path.isfile(folder / f"{name}.py") or os.path.isfile(folder / name / "__init__.py")


def _find(module: ModuleType, attribute: str, named: str) -> Callable[..., object]:
    found: object = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = _callables(found)
            owner = "Module" if found is module else "Class"
            hint = f"It defines: {shortened(names)}." if names else "It defines no callable."
            raise ConfigError(
                f"{named}: {owner.lower()} '{getattr(found, '__name__', found)}' has no"
                f" attribute '{part}'.",
                hint=f"{did_you_mean(part, names)} {hint}".strip(),
            )
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(f"{named} is a {type(found).__name__}, not a callable.")
    return found


def _callables(owner: object) -> list[str]:
    names = [n for n, v in vars(owner).items() if callable(v) and not n.startswith("_")]
    if not isinstance(owner, ModuleType):
        return names
    # What a module defines itself, rather than what it imported: shorter, and likelier to be meant.
    own = [n for n in names if getattr(getattr(owner, n), "__module__", None) == owner.__name__]
    return own or names
