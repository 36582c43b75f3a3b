"""Check the language of pages and code against the limits of ADR 126.

python tools/check_language.py           prints what breaks a limit; exit code 1 if anything does
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
CODE = ("moh_deploy", "tools", "ci", "examples", "benchmarks")
NATIVE_CODE = ("plugins", "examples/cpp", "tests/cuda")

BANNED = re.compile(
    r"\b([Nn]obody|[Ss]omebody|[Ww]hoever|[Ll]ikewise|but\s+for|of\s+which|for\s+want\s+of"
    r"|(?:is|are|has|have)\s+none|contestants?|ladders?|cures?|(?<![.\w])(?:arms?|rungs?)(?![.:]))\b"
)
README_WORDS = 900
CELL_CHARACTERS = 60
SENTENCE_WORDS = 25
LONG_SENTENCES = 0.06  # of the sentences of a page; three are always allowed
FIRST_LINE_WORDS = 4

# Start of a finding to the reason why it stays.
EXCEPTIONS = {
    "moh_deploy/decision/plan.py: 'arms' in": "it is the key of the plan",
    "moh_deploy/serving/guard/guard_io.py: 'rung' in": "a value of a metric's label",
    "moh_deploy/serving/guard/guard.py: 'rung' in": "a value of a metric's label",
    "tools/check_language.py: '": "it lists the words",
}


class Finding(NamedTuple):
    """A place in a file that breaks a limit."""

    path: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"

    @property
    def is_excepted(self) -> bool:
        """Whether the exceptions list it."""
        return any(f"{self.path}: {self.text}".startswith(start) for start in EXCEPTIONS)


def check_page(path: str, text: str) -> Iterator[Finding]:
    """Yield what a Markdown page breaks: words, cells, sentences and, of the README, its length."""
    sentences, long, words = 0, list[Finding](), 0
    for line, part in page_parts(text):
        prose = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", re.sub(r"`[^`]*`", "", part))
        words += len(part.split())
        yield from _banned(path, line, prose)
        if part.startswith("|"):
            for cell in re.split(r"(?<!\\)\|", part.strip("|")):
                if len(cell.strip()) > CELL_CHARACTERS:
                    yield Finding(path, line, f"cell of {len(cell.strip())} characters: {cell}")
            continue
        for sentence in re.split(r"(?<=[.:!?])[*)]*\s+", prose):
            sentences += 1
            count = len(re.findall(r"[^\W\d]\S*", sentence))
            if count > SENTENCE_WORDS:
                long.append(Finding(path, line, f"sentence of {count} words: {sentence}"))
    if len(long) > max(3, LONG_SENTENCES * sentences):
        yield from long
    if path == "README.md" and words > README_WORDS:
        yield Finding(path, 1, f"{words} words outside of code, at most {README_WORDS}")


def page_parts(text: str) -> Iterator[tuple[int, str]]:
    """Yield paragraphs, list items, headings and table rows of a page, with their line numbers."""
    first, lines, fence = 0, list[str](), ""
    for number, line in enumerate([*text.splitlines(), ""], 1):
        bare = line.strip()
        if bare.startswith("<"):  # a comment or a picture: it is no sentence
            bare = ""
        if fence or bare.startswith("```"):
            fence = "" if fence and bare == fence else fence or "`" * (bare.count("`"))
            bare = ""
        if lines and (not bare or re.match(r"#|\||[-*] |\d+\. ", bare)):
            yield first, " ".join(lines)
            lines = []
        if bare and (lines or not line.startswith("    ") or bare.startswith(("-", "|"))):
            first = first if lines else number
            lines.append(bare)


def check_code(path: str, text: str) -> Iterator[Finding]:
    """Yield what a Python file breaks: words of texts and comments, first lines, names."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            for found in BANNED.finditer(_without_names(token.string)):
                line = token.start[0] + token.string[: found.start()].count("\n")
                yield Finding(path, line, f"'{found[0]}' in a text or comment")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)):
            first = (ast.get_docstring(node) or "").split("\n")[0]
            if first and len(first.split()) < FIRST_LINE_WORDS:
                yield Finding(path, node.body[0].lineno, f"docstring begins with '{first}'")
        elif (
            isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id == "one"
        ) or (isinstance(node, ast.arg) and node.arg == "one"):
            yield Finding(path, node.lineno, "variable 'one': name it for the thing")


def _without_names(token: str) -> str:
    """Blank the names in a string or comment: `quoted` ones, values of an f-string, JSON keys."""
    if re.fullmatch(r"""[rb]?["']\w+["']""", token):
        return ""
    return re.sub(r"`[^`]*`|\{[^{}]*\}", lambda found: " " * len(found[0]), token)


def check_native_code(path: str, text: str) -> Iterator[Finding]:
    """Yield the banned words in comments of a C++ or CUDA file, also over two lines."""
    for comment in re.finditer(r"//.*(?:\n\s*//.*)*", text):
        words = re.sub(r"\n\s*//", lambda line: "\n" + " " * (len(line[0]) - 1), comment[0])
        for found in BANNED.finditer(_without_names(words)):
            line = 1 + text.count("\n", 0, comment.start() + found.start())
            yield Finding(path, line, f"'{found[0]}' in a comment")


def _banned(path: str, line: int, text: str) -> Iterator[Finding]:
    for found in BANNED.finditer(text):
        yield Finding(path, line, f"'{found[0]}' in: {text.strip()[:100]}")


def findings(root: Path) -> Iterator[Finding]:
    """Yield what the pages (without ADRs and CHANGELOG) and the code of a checkout break."""
    pages = [*root.glob("*.md"), *(root / "docs").rglob("*.md"), *root.glob("examples/*/README.md")]
    for page in sorted(pages):
        if "adr" not in page.parts and page.name != "CHANGELOG.md":
            yield from check_page(page.relative_to(root).as_posix(), page.read_text())
    for folder in CODE:
        for file in sorted((root / folder).rglob("*.py")):
            yield from check_code(file.relative_to(root).as_posix(), file.read_text())
    for folder in NATIVE_CODE:
        for file in sorted((root / folder).rglob("*.*")):
            if file.suffix in {".h", ".cc", ".cu", ".cuh"}:
                name = file.relative_to(root).as_posix()
                yield from check_native_code(name, file.read_text())


def main() -> None:
    """Print the findings that no exception lists."""
    found = [finding for finding in findings(ROOT) if not finding.is_excepted]
    print(*found, sep="\n", end="\n" if found else "")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
