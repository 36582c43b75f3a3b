"""Bugs planted in the kernels are caught: a push tries one of each op."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cuda.libraries import PLAIN, PLUGINS, Emulator
from tests.cuda.mutations.mutation import Mutation, TextNotFound
from tests.cuda.mutations.planting import try_out
from tests.cuda.mutations.table import MUTATIONS
from tests.nightly import first_of_each, nightly, sampled

pytestmark = pytest.mark.usefixtures("warm_processes")


def _op(mutation: Mutation) -> str | None:
    """A push builds the kernels without sanitizers only."""
    return mutation.op if mutation.variant is PLAIN else None


@pytest.mark.parametrize("mutation", first_of_each(MUTATIONS, _op), ids=str)
def test_bug_is_caught(emulator: Emulator, mutation: Mutation, tmp_path: Path):
    verdict = try_out(mutation, tmp_path)
    assert not verdict.passed, f"survives: {mutation}"
    assert re.search(mutation.symptom, verdict.output), verdict.output


@sampled(3)
@pytest.mark.parametrize("op", sorted({mutation.op for mutation in MUTATIONS}))
def test_nothing_is_caught_where_no_bug_is(emulator: Emulator, op: str, tmp_path: Path):
    mutation = next(item for item in MUTATIONS if item.op == op)
    verdict = try_out(replace(mutation, after=mutation.before), tmp_path)
    assert verdict.passed, verdict.output


def test_every_bug_fits_the_sources():
    for mutation in MUTATIONS:
        text = (PLUGINS / "cuda" / mutation.file).read_text()
        assert mutation.plant(text) != text, mutation


def test_bugs_have_names_of_their_own():
    counts = Counter(map(str, MUTATIONS))
    assert [name for name, count in counts.items() if count > 1] == []


def test_text_that_is_gone_is_named():
    mutation = replace(MUTATIONS[0], before="text that no source has")
    text = (PLUGINS / "cuda" / mutation.file).read_text()
    with pytest.raises(TextNotFound, match=f"{mutation}: .* 0 times; .*\ntext that no source has"):
        mutation.plant(text)


@nightly
def test_a_bug_that_no_case_meets_survives(emulator: Emulator, tmp_path: Path):
    """Its cases have one tile of keys: nothing is rescaled."""
    rescaling = next(mutation for mutation in MUTATIONS if mutation.name == "sums are not rescaled")
    assert try_out(replace(rescaling, cases="plain_rank3"), tmp_path).passed
