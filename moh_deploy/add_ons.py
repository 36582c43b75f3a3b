"""Find add-ons: commands, functions, runtimes and model kinds that the core does not import.

An add-on is any installed distribution that names them as entry points, this one included:

    moh_deploy.commands     an `AddedCommand`
    moh_deploy.functions    a function, which `moh_deploy.NAME` returns
    moh_deploy.runtimes     a `machine.machine.RuntimeProbe`, for `doctor`
    moh_deploy.model_kinds  a `runtime.base.ModelKind`, for all that opens models
    moh_deploy.verifiers    an `AddedVerifier`, for directories that are no packages
"""

import os
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from typing import Literal, NamedTuple, TypeVar

from moh_deploy.errors import BackendError

Group = Literal["commands", "functions", "runtimes", "model_kinds", "verifiers"]
_Form = TypeVar("_Form")
_PREFIX, _OWN = "moh_deploy.", "moh_deploy"


class AddedCommand(NamedTuple):
    """A command of an add-on, as `moh-deploy --help` lists it without importing it."""

    heading: str  # what it stands under: `Make`, ...
    summary: str  # one line
    module: str  # where its `click.Command` is: `MODULE:NAME`; without a name it is `command`
    place: int = 0  # among the added ones under the heading; of equal ones names decide


class AddedVerifier(NamedTuple):
    """A verifier of directories that an add-on writes, for the command `verify`."""

    file: str  # a file that each of them has: others cost no import
    module: str  # a module with `is_one(path)` and `verify_bundle(path, against, loading, as_json)`


class EntryPoint(NamedTuple):
    """One line of the metadata of a distribution, in a group: `name = module:OBJECT`."""

    distribution: str
    group: str
    name: str
    value: str

    def load(self, form: type[_Form]) -> _Form:
        """Import the object, which is to be of a type.

        Raises:
            BackendError: That fails, in whatever way.
        """
        module, _, attribute = self.value.partition(":")
        try:
            found = getattr(import_module(module), attribute)
            if not isinstance(found, form):
                raise TypeError(f"{self.value} is {found!r}, expected {form.__name__}")
            return found
        except Exception as error:  # The code of others may raise anything.
            raise self.broken(error) from error

    def broken(self, error: Exception) -> BackendError:
        """Return the error of an add-on, with its name."""
        return BackendError(
            f"the add-on {self.distribution} is broken: its {self.name} of moh_deploy.{self.group}"
            f" fails: {type(error).__name__}: {error}",
            hint=f"Install {self.distribution} again, or remove it.",
        )


def entry_points(group: Group) -> Mapping[str, EntryPoint]:
    """Return what is registered in a group, by name; of two of one name the first on the path."""
    found: dict[str, EntryPoint] = {}
    for point in _all():
        if point.group == group:
            found.setdefault(point.name, point)
    return found


def missing_metadata() -> BackendError | None:
    """Return the reason why this distribution's own add-ons are unknown; None if they are known."""
    if any(point.distribution == _OWN for point in _all()):
        return None
    return BackendError(
        "moh-deploy runs from files that were not installed, or that changed since: its add-ons are"
        " unknown.",
        hint="In the folder of its pyproject.toml: pip install -e .",
    )


@cache
def _all() -> tuple[EntryPoint, ...]:
    # Read here, as importing importlib.metadata takes a third of the time of `--help` (ADR 96).
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for folder in sys.path:
        try:
            names = sorted(os.listdir(folder or "."))
        except OSError:  # Python takes paths that are no folders, or are not there.
            continue
        for name in names:
            stem, kind = os.path.splitext(name)
            if kind in (".dist-info", ".egg-info"):
                # The first on the path is what Python imports, of several installations.
                distribution = stem.partition("-")[0]
                if distribution not in found:
                    path = os.path.join(folder, name, "entry_points.txt")
                    found[distribution] = tuple(_points_in(distribution, path))
    return tuple(point for points in found.values() for point in points)


def _points_in(distribution: str, path: str) -> Iterator[EntryPoint]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError:  # Most lack it.
        return
    section = ""
    for line in map(str.strip, text.splitlines() if _PREFIX in text else ()):
        if line.startswith("["):
            section = line.strip("[]")
        elif section.startswith(_PREFIX) and "=" in line and line[0] not in "#;":
            name, value = (part.strip() for part in line.split("=", 1))
            yield EntryPoint(distribution, section.removeprefix(_PREFIX), name, value)
