from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from moh_deploy.runtime.open_runner import find_deployed
from moh_deploy.serving import BatchAxis, ServedModel, ServingSettings, open_served
from moh_deploy.serving.served_model import find_joining
from tests.handmade_package import vectors, write_package
from tests.serving.mixing_package import write_mixing


@pytest.fixture
def served(tmp_path: Path) -> Iterator[ServedModel]:
    with_package = open_served(find_deployed(write_package(tmp_path / "p").root), SETTINGS)
    yield with_package
    with_package.close()


SETTINGS = ServingSettings("m")


def test_independent_samples_are_joined(served: ServedModel):
    assert find_joining(served) == (BatchAxis("batch"), None)


def test_trial_is_seen_by_no_observer(served: ServedModel, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(served, "answer", None)
    assert find_joining(served)[0] == BatchAxis("batch")
    sampled = {
        family.name: [one.value for one in family.samples]
        for family in served.families()
        if family.name.startswith("moh_sampled")
    }
    assert sampled == {"moh_sampled_requests_total": [0], "moh_sampled_tokens_total": [0]}


def test_one_sample_proves_nothing(tmp_path: Path):
    package = write_package(tmp_path / "p", sets=(vectors(batch=1),))
    served = open_served(find_deployed(package.root), SETTINGS)
    assert find_joining(served)[1] is not None
    served.close()


@pytest.mark.parametrize("operator", ["ReduceMean", "ReduceMax"])
def test_model_that_mixes_samples_answers_them_alone(tmp_path: Path, operator: str):
    root = write_mixing(tmp_path / "mixing", operator, ["batch", 2])
    served = open_served(find_deployed(root), SETTINGS)
    assert find_joining(served) == (None, "output 'y' of a sample depends on the other samples")
    served.close()


def test_model_of_one_size_answers_requests_alone(tmp_path: Path):
    served = open_served(
        find_deployed(write_mixing(tmp_path / "fixed", "ReduceMean", [3, 2])), SETTINGS
    )
    assert find_joining(served)[0] is None
    served.close()
