"""What all pages share: templates, and a text that any browser can read."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment

# HTML has no form for control characters, UTF-8 none for halves of surrogate pairs.
_NOT_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class Run:
    """What a page is about.

    Attributes:
        subject: Packages or engine, as the user named them.
        arguments: Of the command; empty if Python called.
    """

    subject: str
    arguments: Sequence[str] = ()

    @property
    def command(self) -> str | None:
        """The command line that makes the page again."""
        return shlex.join(["moh-deploy", *self.arguments]) if self.arguments else None


@dataclass(frozen=True)
class Verdict:
    """What a page says first.

    Attributes:
        word: In capitals.
        is_good: None where nothing is judged.
        sentence: What it rests on.
        reasons: Why it is not good.
        notes: What else was found out.
    """

    word: str
    is_good: bool | None
    sentence: str
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fact:
    """A number that is worth a tile.

    Attributes:
        name: What it is.
        value: It, with its unit.
        note: What it is beside.
    """

    name: str
    value: str
    note: str = ""


def render(template: str, *, kind: str, run: Run, verdict: Verdict, **content: object) -> str:
    """Return a page.

    Args:
        template: Name of its file.
        kind: The command that it is of.
        run: What it is about.
        verdict: What it says first.
        content: What else the template shows.
    """
    made = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    page = _environment().get_template(template)
    text = page.render(kind=kind, run=run, verdict=verdict, made=made, **content)
    return _NOT_TEXT.sub("?", re.sub(r"\n\s*\n+", "\n", text))


def no_answer_page(kind: str, run: Run, message: str) -> str:
    """Return the page on a run that ended, or has so far come, without an answer."""
    return render(
        "no_answer.html", kind=kind, run=run, verdict=Verdict("NO ANSWER", False, message)
    )


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("moh_deploy.report.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
