from collections.abc import Callable, Mapping, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from moh_deploy.errors import ExportError
from moh_deploy.frontend.inputs.sizes import SizeTrials
from moh_deploy.frontend.limits import Ranges
from moh_deploy.frontend.load.model import LoadedModel, ModelInput
from moh_deploy.frontend.prove.original import DoesNotRun, OriginalRun, run_original
from moh_deploy.frontend.prove.record import Recording
from moh_deploy.frontend.prove.size_runs import SizeRuns, record_sizes, try_limits
from moh_deploy.package import DimSum

X = ModelInput("x", torch.zeros(2, 4, 3), {0: "batch", 1: "rows", 2: "columns"})


class Sums(nn.Module):
    """Has something to compute at size 0 of all but samples."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sum((1, 2))


def recorded(
    refuses: Callable[..., bool],
    *,
    thorough: bool = True,
    may_be_empty: Sequence[str] = (),
    ranges: Mapping[str, tuple[int, int | None]] | None = None,
    sums: Sequence[DimSum] = (),
) -> SizeRuns:
    """What is recorded of a model that takes all sizes, if its trace refuses some."""
    model = LoadedModel(Sums(), None, "in_memory", None)
    trials = SizeTrials([X], partial(run_original, model), ranges=ranges or {})

    def take(run: OriginalRun) -> Recording | DoesNotRun:
        if run.sizes["columns"] == 0:
            raise ExportError("computes something else")
        return DoesNotRun("no") if refuses(**run.sizes) else Recording([], [], [])

    example = OriginalRun((X,), [X.value])
    flops = 1 if thorough else None
    return record_sizes(trials, example, take, flops=flops, may_be_empty=may_be_empty, sums=sums)


def sizes(found: SizeRuns) -> list[tuple[int, ...]]:
    return [tuple(run.sizes.values()) for run in found.runs]


def nothing(**_: int) -> bool:
    return False


def test_trace_that_takes_all_sizes_is_limited_by_none():
    found = recorded(nothing)
    assert sizes(found) == [(2, 4, 3), (3, 5, 4), (1, 1, 1)]
    assert not found.ranges


def test_dimension_whose_size_one_the_trace_refuses_is_left_at_the_example_there():
    found = recorded(lambda batch, rows, columns: rows == 1)
    assert sizes(found) == [(2, 4, 3), (3, 5, 4), (1, 4, 1)]
    assert found.ranges == {"rows": (2, None)}
    assert found.reasons == {"rows": "the trace does not take rows=1: no"}
    assert len(found.recordings) == len(found.runs)


def test_dimensions_that_only_together_cannot_be_one_are_all_limited():
    found = recorded(lambda batch, rows, columns: rows == columns == 1)
    assert sizes(found) == [(2, 4, 3), (3, 5, 4)]
    assert found.ranges == dict.fromkeys(dims(), (2, None))


@pytest.mark.parametrize("thorough", [True, False])
def test_another_size_is_recorded_where_no_size_one_is_taken(thorough: bool):
    def refuses(**at: int) -> bool:
        return 1 in at.values()

    found = recorded(refuses, thorough=thorough)
    assert sizes(found) == [(2, 4, 3), (3, 5, 4)]
    assert found.ranges == dict.fromkeys(dims(), (2, None))


def test_dimension_that_may_be_empty_is_recorded_so():
    found = recorded(nothing, may_be_empty=["rows", "columns"])
    assert sizes(found) == [(2, 4, 3), (3, 5, 4), (1, 1, 1), (2, 0, 3)]
    assert found.ranges == {"columns": (1, None)}
    assert len(found.recordings) == len(found.runs)


def test_dimension_whose_size_one_is_refused_is_not_tried_empty():
    found = recorded(lambda batch, rows, columns: rows == 1, may_be_empty=["batch", "rows"])
    assert sizes(found) == [(2, 4, 3), (3, 5, 4), (1, 4, 1)]
    assert found.ranges == {"rows": (2, None)}  # without samples, nothing is computed


def test_expensive_model_is_tried_at_a_changed_size_where_size_one_was_refused():
    found = recorded(lambda batch, rows, columns: rows == 1, thorough=False)
    assert sizes(found) == [(2, 4, 3), (1, 4, 1), (3, 5, 4)]


@pytest.mark.parametrize("refused", [(2, 4, 3), (3, 5, 4)])
def test_trace_that_refuses_a_larger_size_fails(refused: tuple[int, ...]):
    def refuses(**at: int) -> bool:
        return tuple(at.values()) == refused

    at = ", ".join(f"{name}={size}" for name, size in zip(dims(), refused, strict=True))
    with pytest.raises(ExportError, match=f"does not run where the original model does at {at}"):
        recorded(refuses)


def dims() -> Mapping[str, int]:
    return OriginalRun((X,), []).sizes


class Weighted(nn.Module):
    """A mean over tokens; without any token, no number."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return (x * mask)[:, 2:].sum(1) / mask[:, 2:].sum(1)


@pytest.mark.parametrize("says_valid", [True, False])
def test_padding_is_recorded_on_each_side_whether_or_not_a_mask_is_known(says_valid: bool):
    items = (
        ModelInput("x", torch.rand(1, 4)),
        ModelInput("mask", torch.ones(1, 4), says_valid=says_valid),
    )
    run = partial(run_original, LoadedModel(Weighted(), None, "in_memory", None))
    example = OriginalRun(items, run([item.value for item in items]))
    found = record_sizes(
        SizeTrials(items, run), example, lambda taken: Recording([], [], []), flops=1
    )
    masks = [run.inputs[1].value.tolist() for run in found.runs]
    assert masks == [[[1.0] * 4], [[0, 0, 1, 1]]]  # on the right, it is no number
    assert all(run.inputs[1].says_valid == says_valid for run in found.runs)


# Limits that a table of the model explains.

TABLE = DimSum(("batch", "rows"), 512, "positions")


@pytest.mark.parametrize("thorough", [True, False])
def test_table_is_taken_whole_and_named_whether_or_not_larger_sizes_can_be_tried(thorough: bool):
    """Torch takes other sizes for 2 or more: of a table of 512 it leaves 510 rows."""
    found = recorded(
        lambda batch, rows, columns: batch + rows > 512,
        thorough=thorough,
        may_be_empty=["rows"],
        ranges={"batch": (1, 510), "rows": (1, 510)},
        sums=[TABLE],
    )
    why = "its table 'positions' has 512 rows, for batch + rows"
    assert found.ranges == {"batch": (1, 512), "rows": (0, 511)}
    assert found.reasons == {"batch": why, "rows": why}


def test_size_that_was_not_tried_is_said_so_without_a_table():
    limited = recorded(nothing, thorough=False, ranges={"batch": (1, 510)})
    assert limited.ranges == {"batch": (1, 510)}
    assert limited.reasons == {"batch": "the model is too large to try batch=511"}


def test_disagreement_within_a_table_stays_the_reason():
    found = recorded(
        lambda batch, rows, columns: batch > 510,
        ranges={"batch": (1, 510)},
        sums=[TABLE],
    )
    assert found.reasons == {"batch": "the trace is not good at batch=511: no"}


# Limits of a trace that are tried by sizes beyond them.


def tried(
    limits: tuple[int, int | None],
    agrees: Callable[[int], bool],
    retraced: Ranges | None = None,
) -> tuple[tuple[object, object], list[int]]:
    """What is left of the limits of `n`, and the sizes that were tried."""
    sizes: list[int] = []

    def in_the_way(name: str, size: int) -> str | None:
        sizes.append(size)
        return None if agrees(size) else f"{name}={size} differs"

    return try_limits({"n": limits}, in_the_way, lambda name, size: retraced), sizes


def test_limit_that_is_none_of_the_models_is_lifted():
    found, sizes = tried((9, None), lambda size: True)
    assert found == ({}, {})
    assert sizes == [8, 6, 2, 1]


@pytest.mark.parametrize("least", range(1, 21))
def test_smallest_size_that_agrees_is_found(least: int):
    found, sizes = tried((20, None), lambda size: size >= least)
    assert found[0].get("n", (1, None)) == (least, None)
    assert len(sizes) <= 12
    assert found[1] == ({} if least == 1 else {"n": f"n={least - 1} differs"})


def test_largest_size_of_the_model_stays():
    found, sizes = tried((1, 64), lambda size: size <= 64)
    assert found == ({"n": (1, 64)}, {"n": "n=65 differs"})
    assert sizes == [65]
    found, sizes = tried((1, 64), lambda size: size < 200)
    assert found == ({"n": (1, 199)}, {"n": "n=200 differs"})
    assert len(sizes) < 30


def test_both_limits_are_tried():
    found, _ = tried((5, 64), lambda size: 3 <= size <= 64)
    assert found == ({"n": (3, 64)}, {"n": "n=2 differs; n=65 differs"})


@pytest.mark.parametrize(
    ("retraced", "expected"),
    [
        ({"n": (65, None)}, None),
        ({}, None),
        ({"n": (65, 1000)}, 1000),
        ({"n": (66, None)}, None),
        ({"n": (100, None)}, 256),
        (None, 256),
    ],
)
def test_larger_sizes_are_as_many_as_another_trace_takes(
    retraced: Ranges | None, expected: int | None
):
    found, _ = tried((1, 64), lambda size: True, retraced)
    assert found[0].get("n", (1, None)) == (1, expected)
    assert bool(found[1]) == (expected == 256)
