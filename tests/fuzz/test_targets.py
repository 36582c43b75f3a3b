"""A few inputs for every reader, the same ones each time."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz.targets import TARGETS

# Of a program torch itself reads much before it says no.
_EXAMPLES = {"program": 10}


@pytest.mark.parametrize("name", TARGETS)
def test_reader_reads_or_refuses_whatever_it_is_given(name: str, tmp_path: Path):
    prepared = TARGETS[name](tmp_path)
    answers: list[str] = []

    @settings(
        max_examples=_EXAMPLES.get(name, 40),
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(prepared.inputs)
    def fuzz(drawn: object) -> None:
        answers.append(prepared.answer(drawn))

    fuzz()
    # All of one kind would mean that nothing that matters was changed, or all that does.
    assert "refused" in answers
