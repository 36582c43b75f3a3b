"""Read the fenced blocks of README and docs, their commands, and the marks above them.

A mark is a comment in the line above a fence, which no rendered page shows:

    <!-- skip: REASON -->              no command of the block is run
    <!-- skip 'WORDS': REASON -->      those that hold WORDS are left out
    <!-- ignore output 'WORDS': REASON --> run; what they print, and whether they answer no, is open
    <!-- file: NAME -->                   the block is written to a file for the commands after it
"""

import re
import shlex
from dataclasses import dataclass
from functools import cache

from tests.kept_builds import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if "adr" not in page.parts]

_FENCED = re.compile(
    r"(?P<marks>(?:^ *<!-- [^\n]* -->\n)*)^(?P<indent> *)```(?P<language>\w*)\n"
    r"(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_MARK = re.compile(
    r"<!-- (?P<kind>skip|ignore output|file)(?: '(?P<words>[^']+)')?: (?P<reason>.+) -->"
)


@dataclass(frozen=True)
class Mark:
    """What a comment above a block says of the commands that hold `words`; all hold none."""

    kind: str
    words: str
    reason: str


@dataclass(frozen=True)
class Command:
    """A command of a console block, and what the page says that it prints."""

    line: str
    printed: str


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        place: Page and line of the fence.
        language: What the fence names: `console`, `python`, `text`, ...
        follows: The language of the block directly above it, without text between; else empty.
    """

    place: str
    language: str
    text: str
    marks: tuple[Mark, ...]
    follows: str = ""

    def marked(self, kind: str, command: str = "") -> str:
        """Return the reason of a mark for a command, or for the whole block; empty without one."""
        found = (mark for mark in self.marks if mark.kind == kind and mark.words in command)
        return next((mark.reason for mark in found), "")

    @property
    def file(self) -> str:
        """The file that the block is: by a mark, or by Python's first line `# NAME.py`."""
        named = re.match(r"# (\S+\.py)\n", self.text) if self.language == "python" else None
        return named[1] if named else self.marked("file")

    @property
    def commands(self) -> list[Command]:
        """The lines behind `$ `, with those that go on with them, and the lines printed."""
        found: list[list[str]] = []
        for line in self.text.splitlines():
            if line.startswith("$ "):
                found.append([line[2:], ""])
            elif found and not _is_complete(found[-1][0]):
                found[-1][0] += f"\n{line}"
            elif found:
                found[-1][1] += f"{line}\n"
        return [Command(line, printed) for line, printed in found]


def blocks(page: str, name: str = "") -> list[Block]:
    """Return the fenced blocks of a page in their order."""
    found: list[Block] = []
    end = 0
    for fence in _FENCED.finditer(page):
        indent = fence["indent"]
        marks = [_MARK.fullmatch(line.strip()) for line in fence["marks"].splitlines()]
        is_next = bool(found) and not page[end : fence.start()].strip()
        block = Block(
            f"{name}:{page.count(chr(10), 0, fence.start('language')) + 1}",
            fence["language"],
            re.sub(f"^{indent}", "", fence["text"], flags=re.MULTILINE),
            tuple(
                Mark(mark["kind"], mark["words"] or "", mark["reason"]) for mark in marks if mark
            ),
            found[-1].language if is_next else "",
        )
        found.append(block)
        end = fence.end()
    return found


@cache
def all_blocks() -> list[Block]:
    """Return the blocks of README and docs."""
    return [
        block
        for page in PAGES
        for block in blocks(page.read_text(), page.relative_to(ROOT).as_posix())
    ]


def _is_complete(command: str) -> bool:
    """Tell whether a shell would read no further line: no open quote, no backslash at the end."""
    try:
        shlex.split(command, comments=True)
    except ValueError:
        return False
    return not command.endswith("\\")
