"""A few inputs for every reader: the same ones at each push."""

from pathlib import Path

import pytest
from hypothesis import given, settings

from tests.fuzz.targets import TARGETS
from tests.nightly import sampled

# Of a program torch itself reads much before it says no.
_FEW_EXAMPLES = {"program": {"max_examples": 10}}


@sampled(3)
@pytest.mark.parametrize("name", TARGETS)
def test_reader_reads_or_refuses_whatever_it_is_given(name: str, tmp_path: Path):
    prepared = TARGETS[name](tmp_path)
    answers: list[str] = []

    @settings(**_FEW_EXAMPLES.get(name, {}))
    @given(prepared.inputs)
    def fuzz(drawn: object) -> None:
        answers.append(prepared.answer(drawn))

    fuzz()
    # All of one kind would mean that nothing that matters was changed, or all that does.
    assert "refused" in answers
