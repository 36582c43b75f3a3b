"""The limits of language hold, and each of them can fail."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOL = importlib.util.spec_from_file_location(
    "check_language", ROOT / "tools" / "check_language.py"
)
check_language = importlib.util.module_from_spec(TOOL)
TOOL.loader.exec_module(check_language)
LONG = "word " * 26 + "."


@pytest.mark.parametrize(
    ("path", "text", "found"),
    [
        (
            "docs/a.md",
            "A page that\nsomebody wrote.",
            ["'somebody' in: A page that somebody wrote."],
        ),
        ("docs/a.md", "There is\nnone.", ["'is none' in: There is none."]),
        ("docs/a.md", "`nobody` and\n\n```text\nnobody\n```\n\n    nobody\n", []),
        ("docs/a.md", f"| a | {'b' * 60} |", []),
        ("docs/a.md", f"| a | {'b' * 61} |", [f"cell of 61 characters:  {'b' * 61} "]),
        ("docs/a.md", f"{LONG}\n\n{LONG}\n\n{LONG}\n", []),
        ("docs/a.md", f"- {LONG}\n" * 4, [f"sentence of 26 words: - {LONG}"] * 4),
        ("docs/a.md", "word " * 901, []),
        ("README.md", "word. " * 901, ["901 words outside of code, at most 900"]),
        ("README.md", "word. " * 900 + "\n```console\n$ a b c\n```\n", []),
    ],
)
def test_page_is_held_to_its_limits(path: str, text: str, found: list[str]):
    assert [finding.text for finding in check_language.check_page(path, text)] == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("x = 1  # of which", "'of which' in a text or comment"),
        ("raise ValueError(f'nobody: {x}')", "'nobody' in a text or comment"),
        ('"""A module with text.\n\nThere are\nnone.\n"""', "'are\nnone' in a text or comment"),
        ('def f():\n    """Do it now."""', "docstring begins with 'Do it now.'"),
        ("x = 'an arm of the plan'", "'arm' in a text or comment"),
        ("for one in ():\n    pass", "variable 'one': name it for the thing"),
        ("f = lambda one: 1", "variable 'one': name it for the thing"),
        ("[1 for _, one in ()]", "variable 'one': name it for the thing"),
    ],
)
def test_code_is_held_to_its_limits(text: str, found: str):
    assert [finding.text for finding in check_language.check_code("a.py", text)] == [found]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("int a;  // 0: nobody asked", "a.cu:1: 'nobody' in a comment"),
        (
            "int a;\n  // A tile, of\n  // which a key is seen.\n",
            "a.cu:2: 'of\n     which' in a comment",
        ),
        ("// A rung, `rung`", "a.cu:1: 'rung' in a comment"),
    ],
)
def test_comments_of_native_code_are_held_to_the_words(text: str, found: str):
    assert [str(finding) for finding in check_language.check_native_code("a.cu", text)] == [found]


def test_names_in_code_are_no_words():
    text = (
        'a = {"contestant": f"{row.contestant} ran", "b": None is None, "c": "arms.a.of"}  # `rung`'
    )
    assert list(check_language.check_code("a.py", text)) == []


def test_lines_are_those_of_the_file():
    (found,) = check_language.check_page("docs/a.md", "# Title\n\nText.\n\n- nobody\n")
    assert str(found) == "docs/a.md:5: 'nobody' in: - nobody"
    (found,) = check_language.check_code("a.py", '"""A module with text.\n\nlikewise\n"""\n')
    assert found.line == 3


@pytest.mark.parametrize("start", check_language.EXCEPTIONS)
def test_every_exception_is_needed(start: str):
    path = start.split(":")[0]
    check = check_language.check_page if path.endswith(".md") else check_language.check_code
    found = list(check(path, (ROOT / path).read_text()))
    assert any(finding.is_excepted for finding in found)
    assert [str(finding) for finding in found if not finding.is_excepted] == []
