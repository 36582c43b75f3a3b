"""Scores of blocks: the same as without blocks, and kept until an interrupted call goes on."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest

from moh_deploy.decision.alternative import Alternative, OpenedAlternative, open_alternatives
from moh_deploy.decision.api.compare import _Samples, _samples
from moh_deploy.decision.plan import PlanFile, read_plan
from moh_deploy.decision.score_alternatives import (
    AlternativeBlock,
    BlockScorer,
    BlockScores,
    score_here,
)
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import AS_IT_IS
from moh_deploy.runtime.models import PackageDir
from moh_deploy.system.progress import SilentProgress
from tests.decision.test_spread import write_case

Case: TypeAlias = tuple[_Samples, Mapping[str, OpenedAlternative]]


class Interrupted(Exception):
    pass


class Counting:
    """Runs blocks backwards, and is interrupted after so many."""

    def __init__(self, most: int = 1000) -> None:
        self.most, self.done = most, 0

    def __call__(
        self, blocks: Sequence[AlternativeBlock]
    ) -> Iterator[tuple[AlternativeBlock, BlockScores]]:
        for found in score_here(blocks[::-1]):
            if self.done == self.most:
                raise Interrupted
            self.done += 1
            yield found


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    file: PlanFile = read_plan(write_case(tmp_path_factory.mktemp("blocks")), trust_code=True)
    models = {name: PackageDir(file.folder / name) for name in ("right", "wrong")}
    base: OnnxPackage = models["right"].package
    alternatives = [
        Alternative(name, item.name, item, AS_IT_IS, item.package) for name, item in models.items()
    ]
    with ExitStack() as stack:
        yield _samples(file, base), open_alternatives(alternatives, base.manifest, stack)


def scored(scorer: object, case: Case) -> list[bytes]:
    samples, alternatives = case
    assert callable(scorer)
    found = scorer(
        alternatives, samples.batches, samples.metrics, ignore=-100, progress=SilentProgress()
    )
    return [np.stack([item.weights, *item.totals.values()]).tobytes() for item in found]


def test_blocks_in_any_order_give_the_same_bits(case: Case):
    assert scored(BlockScorer({}, None, Counting()), case) == scored(BlockScorer({}), case)


def test_interrupted_scoring_goes_on_where_it_was(case: Case, tmp_path: Path):
    with pytest.raises(Interrupted):
        scored(BlockScorer({"plan": "1"}, tmp_path, Counting(5)), case)
    rest = Counting()
    assert scored(BlockScorer({"plan": "1"}, tmp_path, rest), case) == scored(BlockScorer({}), case)
    # 125 runs are 16 blocks of each of two alternatives.
    assert rest.done == 32 - 5
    again = Counting()
    assert scored(BlockScorer({"plan": "1"}, tmp_path, again), case) == scored(
        BlockScorer({}), case
    )
    assert again.done == 0


def test_scores_of_runs_of_another_size_are_not_taken(case: Case, tmp_path: Path):
    """Another base package may say another one, of which a plan knows nothing."""
    samples, alternatives = case
    file = read_plan(write_case(tmp_path), trust_code=True)
    larger = replace(file, plan=file.plan.model_copy(update={"batch_size": 8}))
    package = alternatives["right"].alternative.package
    assert package is not None
    of_4, of_8 = (
        (replace(sample, batches=sample.batches[:8]), alternatives)
        for sample in (samples, _samples(larger, package))
    )
    scorer = BlockScorer({"plan": "1"}, tmp_path / "kept")
    scored(scorer, of_4)
    assert scored(scorer, of_8) == scored(BlockScorer({}), of_8)


def test_scores_of_another_plan_or_model_are_not_taken(case: Case, tmp_path: Path):
    samples, alternatives = case
    scored(BlockScorer({"plan": "1"}, tmp_path), case)
    other = Counting()
    scored(BlockScorer({"plan": "2"}, tmp_path, other), case)
    assert other.done == 32
    # `right` under its name, but with what `wrong` is.
    wrong = alternatives["wrong"]
    changed = OpenedAlternative(
        Alternative(
            "right",
            wrong.alternative.kind,
            wrong.alternative.model,
            AS_IT_IS,
            wrong.alternative.package,
        ),
        wrong.runner,
        wrong.base,
    )
    mixed = Counting()
    scored(
        BlockScorer({"plan": "1"}, tmp_path, mixed), (samples, {**alternatives, "right": changed})
    )
    assert mixed.done == 16
