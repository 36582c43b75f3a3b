"""The common parts of all commands' reports."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

if TYPE_CHECKING:
    from rich.console import RenderableType

    from moh_deploy.errors import MoHDeployError
    from moh_deploy.report.document import Document


# How numbers look in reports.


def count(number: int, noun: str) -> str:
    """Return `1 layer` or `3 layers`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def shown_verdict(verdict: str) -> str:
    """Return a verdict as reports show it; JSON keeps `cannot tell` for its readers."""
    return "inconclusive" if verdict == "cannot tell" else verdict


def figure(value: float | None) -> str | None:
    """Return a measured number to three digits."""
    return None if value is None else f"{value:.3g}"


def amount(value: float) -> str:
    """Return three digits, and all that stand before the point: `1 234`."""
    return f"{value:,.0f}".replace(",", " ") if abs(value) >= 1000 else f"{value:.3g}"


def number(value: float | None) -> str | None:
    """Return the same for a page, where missing values are named."""
    if value is None:
        return None
    if math.isnan(value):
        return "NaN"
    return f"{value:.3g}" if math.isfinite(value) else ("∞" if value > 0 else "-∞")


def share(value: float | None, *, digits: int = 1) -> str | None:
    """Return `62.5 %`; all and none are said of all and none only."""
    if value is None or not 0 <= value <= 1:
        return number(value)
    if value in (0, 1):
        return f"{100 * value:.0f} %"
    # 99.97 % of decisions are not all of them, and are not to look like it after rounding.
    step = 10.0**-digits
    percent = round(100 * value, digits)
    if percent == 100:
        return f">{100 - step:.{digits}f} %"
    if percent == 0:
        return f"<{step:.{digits}f} %"
    return f"{percent:.{digits}f} %"


def si(value: int | None) -> str | None:
    """Return a large count with its SI prefix, `1.5 G`, to put a unit behind."""
    if value is None:
        return None
    scaled, prefixes = float(value), iter(" kMGTP")
    prefix = next(prefixes)
    while scaled >= 1000 and prefix != "P":
        scaled, prefix = scaled / 1000, next(prefixes)
    return f"{scaled:.3g} {prefix.strip()}"


# JSON of a report, from its dataclass: fields by their names, and what else is marked.
#
# A field whose metadata is `HIDDEN` is left out; the members of one that is `FLAT`, or of each of
# its items, stand among those of what it is in. A property is there if it is marked by `in_json`.

_KEY = "json"
HIDDEN = {_KEY: "hidden"}
FLAT = {_KEY: "flat"}

Getter = TypeVar("Getter", bound=Callable[..., object])


def in_json(name: str = "") -> Callable[[Getter], Getter]:
    """Mark the getter of a property, below `@property`.

    Args:
        name: What JSON calls it; empty for the property's own.
    """

    def mark(getter: Getter) -> Getter:
        # The getter carries the mark: of a property of a class of its own mypy would know no type.
        setattr(getter, _KEY, name or getter.__name__)
        return getter

    return mark


def to_json(value: object) -> object:
    """Return plain JSON types; NaN and infinity stay, see `to_json_text`."""
    # Not `dataclasses.asdict`: it copies everything, and knows neither properties nor flat members.
    if is_dataclass(value):
        return dict(_members(value))
    if isinstance(value, Mapping):
        return {str(name): to_json(item) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _members(value: object) -> Iterator[tuple[str, object]]:
    for name, attribute, is_flat in json_members(cast(type, type(value))):
        member = getattr(value, attribute)
        if is_flat:
            for item in member if isinstance(member, tuple) else (member,):
                yield from _members(item)
        else:
            yield name, to_json(member)


@cache
def json_members(form: type) -> tuple[tuple[str, str, bool], ...]:
    """Return what JSON has of a dataclass: its name there, the attribute, and whether it is flat.

    Of two of one name the later counts.
    """
    kinds = {field.name: field.metadata.get(_KEY) for field in fields(form)}
    shown = [(name, name, kind == "flat") for name, kind in kinds.items() if kind != "hidden"]
    # `dir` has what base classes mark, too; it is in order of names, and objects have no order.
    getters = {name: getattr(getattr(form, name, None), "fget", None) for name in dir(form)}
    marked = [(getattr(getter, _KEY, None), name) for name, getter in getters.items()]
    return (*shown, *((name, attribute, False) for name, attribute in marked if name is not None))


class Report(ABC):
    """The answer of a command: a dataclass for programs, and a document of it for people."""

    @property
    def failure(self) -> MoHDeployError | None:
        """Why the answer is no; None where it is yes, or there was no question."""
        return None

    @abstractmethod
    def document(self) -> Document:
        """Return what it says."""

    def to_json(self) -> dict[str, object]:
        """Return the report in plain JSON types."""
        return cast("dict[str, object]", to_json(self))

    # Renderers are imported on first use: programs mostly read the fields of a report, or its JSON.

    def to_markdown(self) -> str:
        """Return the report as Markdown: what was judged, tables with headings, and all else."""
        from moh_deploy.report.markdown import markdown

        return markdown(self.document())

    def _repr_markdown_(self) -> str:  # what a notebook shows
        return self.to_markdown()

    def __rich__(self) -> RenderableType:
        from moh_deploy.report.terminal import terminal

        return terminal(self.document())
