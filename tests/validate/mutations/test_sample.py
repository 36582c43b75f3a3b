"""A sample of the tables: what moves a layer by more than rounding does is refused, and the layer
named; what does not is accepted."""

import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.kernel_library import required_library
from tests.nightly import in_turn, nightly, one_in, sampled
from tests.validate.mutations.faults import SEEN_BY_KERNELS_ONLY
from tests.validate.mutations.packages import PRECISIONS, Precision
from tests.validate.mutations.planting import WITHOUT_EFFECT, FaultInjection, Planted
from tests.validate.mutations.rotary import ROTARY
from tests.validate.mutations.stacks import STACKS
from tests.validate.mutations.variations import Subject, vary
from tests.zoo import ZooModel

MIDDLE = 1

IN_FLOAT32 = (
    "top_k + 1",
    "top_k - 1",
    "ranked by the wrong end",
    "logits of two heads swapped",
    "not renormalised",
    "router before the norm",
    "one gate + 1 %",
    "gates rolled on the way",
    "gates + 1 % on the way",
    "scale + 1 %",
    "causal flag flipped",
    "stale o",
    "stale bias v",
    "noise 0.1% q",
    "noise 0.1% router",
    "heads of k swapped",
    "wrong value head",
    "body: scale + 1 %",
    "values + 5 % at one size",
)

IN_HALF = (
    "top_k + 1",
    "top_k - 1",
    "shared and routed swapped",
    "router before the norm",
    "gates rolled on the way",
    "scale 1/D",
    "stale k",
    "heads of q swapped",
)


HONEST = (
    "kernels",
    "function bodies",
    "optimisations off",
    "choice by size",
    "ties to the higher index",
    "inputs of seed 1",
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("packages")


@pytest.fixture(autouse=True)
def _blind_queries_are_nan_on_their_way() -> Iterator[None]:
    """ONNX's reference implementation warns of that."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=RuntimeWarning, module="onnx")
        yield


Plant = Callable[[str, str, Precision], Planted]


@pytest.fixture(scope="module")
def plant_one(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Plant:
    """Return what plants a fault in the middle layer of a model; what is measured of a model is
    measured once."""
    scratch = tmp_path_factory.mktemp("wrong") / "package"

    @cache
    def injection(model: str) -> FaultInjection:
        return FaultInjection(named(model), directory, scratch)

    def plant(model: str, fault: str, precision: Precision) -> Planted:
        planted = injection(model).plant_all(
            precision, faults=[fault], layers=lambda index: index == MIDDLE
        )
        (found,) = planted
        return found

    return plant


def named(name: str) -> ZooModel:
    return next(model for model in STACKS if model.name == name)


def assert_refused(found: Planted) -> None:
    assert found.ratio >= WITHOUT_EFFECT
    assert found.verdict.refused
    assert not found.verdict.crashed, found.verdict.message
    assert found.named_rightly, found.verdict.message


@sampled(8)
@pytest.mark.parametrize("fault", one_in(3, IN_FLOAT32))
def test_fault_is_refused_and_its_layer_named(fault: str, plant_one: Plant):
    assert_refused(plant_one("stack_causal", fault, "float32"))


@sampled(8)
@pytest.mark.parametrize("fault", one_in(3, IN_FLOAT32))
def test_fault_is_refused_where_kernels_multiply_bfloat16(fault: str, plant_one: Plant):
    required_library()
    found = plant_one("stack_near_ties", fault, "bfloat16 products")
    # Many move values by less than the kernels round: function bodies in float32 tell.
    assert found.verdict.refused
    assert found.named_rightly, found.verdict.message


@nightly
@pytest.mark.parametrize(("fault", "precision"), in_turn(IN_HALF, ["float16", "bfloat16"]))
def test_fault_is_refused_in_half_precision_where_every_choice_is_near_a_tie(
    precision: Precision, fault: str, plant_one: Plant
):
    assert_refused(plant_one("stack_near_ties", fault, precision))


@sampled(3)
@pytest.mark.parametrize("fault", sorted(SEEN_BY_KERNELS_ONLY))
def test_fault_of_a_kernel_is_refused_where_kernels_run_and_not_as_function_body(
    fault: str, plant_one: Plant
):
    required_library()
    found = plant_one("stack_causal", fault, "float32")
    assert_refused(found)
    assert not found.beside.refused


def test_what_moves_nothing_is_accepted(plant_one: Plant):
    """Softmax does not see what is added to all scores of a query."""
    found = plant_one("stack_causal", "stale bias k", "float32")
    assert found.ratio < WITHOUT_EFFECT
    assert not found.verdict.refused


@nightly
@pytest.mark.parametrize("precision", PRECISIONS)
def test_variations_are_accepted(precision: Precision, directory: Path, tmp_path: Path):
    subject = Subject(named("stack_near_ties"), precision, directory, tmp_path / "varied")
    refused = {row.variation: row.verdict for row in vary(subject, HONEST) if row.verdict.refused}
    assert refused == {}


@nightly
@pytest.mark.parametrize("tokens", [2048, 8192])
@pytest.mark.parametrize("model", ROTARY, ids=lambda model: model.name)
def test_long_prompts_are_accepted(model: ZooModel, tokens: int, directory: Path, tmp_path: Path):
    subject = Subject(model, "float32", directory, tmp_path / "varied")
    (found,) = vary(subject, [f"prompt of {tokens} tokens"])
    assert not found.verdict.refused, found.verdict.message
