"""A page that says what does not happen fails; what a machine decides may differ."""

import sys
from pathlib import Path

import pytest

from tests.pages.session import Session, WrongPage


@pytest.fixture
def run(tmp_path: Path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)

    def run_page(page: str) -> list[str]:
        (tmp_path / "page.md").write_text(page)
        with Session(tmp_path, tmp_path / "bin", may={"late"}) as session:
            session.run_page(tmp_path / "page.md")
            return session.steps

    return run_page


def console(text: str, mark: str = "") -> str:
    return f"{mark}\n```console\n{text}\n```\n"


@pytest.mark.parametrize(
    "page",
    [
        console("$ echo 1 of 2, 0.25 s, 3e-07\n1 of 2, 0.75 s, 1.5e-03"),
        console("$ echo a; echo b; echo c\na\n...\nc"),
        console("$ printf '│ a │\\033[1m b  │'\n│ a      │ b │"),
        console("$ echo '┏━━┓'; echo '┃ ab ┃'; echo '┡━━┩'; echo '│ c  │'\n┃ ab ┃\n│ c │"),
        console("$ test a = b", "<!-- skip: is false -->"),
        console("$ test a = b\n$ true", "<!-- skip 'test': is false -->"),
        console("$ echo 1; test a = b\n2", "<!-- ignore output 'test': is false -->"),
        console("$ echo a > b") + console("$ cat b\na"),
        "<!-- file: b.txt -->\n```text\nb\n```\n" + console("$ cat b.txt\nb"),
        "```python\nx = 1\n```\n```python\nprint(x + 1)\n```\n```text\n2\n```\n",
    ],
)
def test_page_is_right(run, page: str):
    run(page)


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        (console("$ echo 1 of 2\n2 of 2"), "page.md:2: other output\necho 1 of 2"),
        (console("$ echo a; echo b\nb\n...\na"), "other output"),
        (console("$ echo a >&2; exit 3"), "page.md:2: exit code 3\necho a >&2; exit 3\na"),
        (console("$ exit 2", "<!-- ignore output: is so -->"), "exit code 2"),
        (console("$ exit 4", "<!-- skip: late -->"), "exit code 4"),
        ("```python\nprint(1)\n```\n\n```text\n2\n```\n", "other output"),
        ("```python\nprint(a)\n```\n", "NameError: name 'a' is not defined"),
    ],
)
def test_page_is_wrong(run, page: str, problem: str):
    with pytest.raises(WrongPage) as raised:
        run(page)
    assert problem in str(raised.value)


def test_steps_are_what_was_run(run):
    page = console("$ echo a\na\n$ false", "<!-- skip 'false': is false -->")
    assert run(page) == ["echo a"]
