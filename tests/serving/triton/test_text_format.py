from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moh_deploy.errors import PackageError
from moh_deploy.serving.triton.text_format import MOST_DEPTH, Word, from_text, to_text

NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
WORDS = st.from_regex(r"[A-Z][A-Z0-9_]{0,8}", fullmatch=True).map(Word)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SCALARS = st.one_of(TEXTS, st.integers(-(2**63), 2**63), st.booleans(), WORDS)
MESSAGES: st.SearchStrategy[dict[str, list[Any]]] = st.recursive(
    st.dictionaries(NAMES, st.lists(SCALARS, min_size=1, max_size=3), max_size=3),
    lambda inner: st.dictionaries(
        NAMES, st.lists(st.one_of(SCALARS, inner), min_size=1, max_size=3), max_size=3
    ),
    max_leaves=12,
)


def parsed(text: str) -> dict[str, list[Any]]:
    return from_text(text, "config.pbtxt", error=PackageError)


@given(MESSAGES)
def test_what_is_written_reads_back_as_it_was(message: dict[str, list[Any]]):
    assert parsed(to_text(message)) == message


def test_every_form_that_people_write_is_read():
    text = """
    # a comment
    name: "a" 'b'   ; backend: "python",
    max_batch_size: 0x10
    input [ { name: "x" dims: [ 1, -1 ] }, { name: "y" } ]
    group < count: 2 kind: KIND_CPU >
    flag: true ratio: -1.5e3
    """
    assert parsed(text) == {
        "name": ["ab"],
        "backend": ["python"],
        "max_batch_size": [16],
        "input": [{"name": ["x"], "dims": [1, -1]}, {"name": ["y"]}],
        "group": [{"count": [2], "kind": [Word("KIND_CPU")]}],
        "flag": [True],
        "ratio": [-1500.0],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: 'x'\ninput {", "line 2: 'the end' stands there, expected the name of a field"),
        ("name 'x'", "line 1: ''x'' stands there, expected ':' or '{'"),
        ("dims: [ 1 2 ]", "line 1: '2' stands there, expected ',' or ']'"),
        ("\n\nname: @", "line 3: '@' cannot be read"),
        ("name: }", "line 1: '}' stands there, expected a value"),
        ("a {" * (MOST_DEPTH + 2), f"nested deeper than {MOST_DEPTH} levels"),
        (f"n: {'9' * 60}", "a number has more than 40 digits"),
        ("n: 0x", "line 1: '0x' cannot be read"),
        ("n: 08", "'08' is no number"),
    ],
)
def test_what_is_no_such_text_is_refused_with_its_line(text: str, message: str):
    with pytest.raises(PackageError) as error:
        parsed(text)
    assert message in error.value.message
