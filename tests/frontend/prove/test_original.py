from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from moh_deploy.errors import ExportError
from moh_deploy.frontend.load.model import LoadedModel, ModelInput
from moh_deploy.frontend.prove.original import (
    DoesNotRun,
    OriginalRun,
    check_trace,
    one_thread_if_small,
    run_example,
    run_original,
    try_to_record,
)
from moh_deploy.frontend.prove.record import Recording
from tests.frontend.traced import loaded, plain_trace, traced

X = torch.ones(2, 3)
INPUT = ModelInput("x", X, {0: "batch"})


class WritesIntoItsInput(nn.Module):
    def forward(self, x):
        x.add_(1)
        return {"y": x, "more": (None, x.sum())}


def test_run_leaves_its_arguments_alone():
    outputs = run_original(loaded(WritesIntoItsInput()), [X])
    assert torch.equal(X, torch.ones(2, 3))
    assert [tuple(output.shape) for output in outputs] == [(2, 3), ()]


def test_program_of_a_file_is_run_as_a_module_is():
    program = plain_trace(nn.Linear(3, 2), X)
    (output,) = run_original(LoadedModel(None, program, "pt2", None), [X])
    torch.testing.assert_close(output, program.module()(X))


class Decode(nn.Module):
    def forward(self, x, past, *, mask):
        (key, value), *_ = past
        return x + key - 2 * value, mask


def test_program_takes_tensors_that_were_exported_in_tuples_and_by_keyword():
    past = ((X * 2, X * 3), (X, X))
    program = torch.export.export(Decode(), (X, past), {"mask": X * 5})
    tensors = [X, X * 2, X * 3, X, X, X * 5]
    output, mask = run_original(LoadedModel(None, program, "pt2", None), tensors)
    torch.testing.assert_close(output, X * -3)
    torch.testing.assert_close(mask, X * 5)


def test_flops_are_twice_the_multiply_adds():
    run, flops = run_example(loaded(nn.Linear(3, 5, bias=False)), [INPUT])
    assert flops == 2 * (2 * 3 * 5)
    assert run.sizes == {"batch": 2}
    assert run.at == " at batch=2"


def test_size_of_a_derived_dimension_is_that_of_its_name():
    inputs = (ModelInput("mask", torch.ones(4, 6), {0: "b", 1: "past+1"}),)
    assert OriginalRun(inputs, []).sizes == {"b": 4, "past": 5}


def test_small_model_runs_on_one_thread_and_the_number_comes_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_thread_if_small(loaded(nn.Linear(3, 2))):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def check(expected: Tensor | list[Tensor], got: Tensor | list[Tensor]) -> None:
    outputs = [expected] if isinstance(expected, Tensor) else expected
    recorded = [got] if isinstance(got, Tensor) else got
    names = [f"y{index}" for index in range(len(outputs))]
    check_trace(OriginalRun((INPUT,), outputs), Recording(recorded, [], []), names)


def test_trace_within_rounding_is_accepted():
    check(X, X + 5e-5)
    check(X * 1000, X * 1000 + 0.05)
    check(torch.tensor([1, 2]), torch.tensor([1, 2]))
    check(torch.tensor([1.0, torch.nan]), torch.tensor([1.0, torch.nan]))


@pytest.mark.parametrize(
    ("expected", "got", "message"),
    [
        (X, X + 1e-3, r"differs .* at batch=2: output 'y0' is off by 0.001"),
        (X, X[:, :2], r"has shape \(2, 2\), expected \(2, 3\)"),
        (X, X.double(), "has dtype torch.float64, expected torch.float32"),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), "is off by 1, allowed is 0"),
        (X, X / 0, "output 'y0' is not finite where the original is"),
        ([X, X], [X, X + 1], "output 'y1' is off by 1"),
        ([X, X], [X], "has 1 outputs at batch=2, the original model 2"),
    ],
)
def test_trace_that_is_another_model_is_refused(expected, got, message: str):
    with pytest.raises(ExportError, match=message):
        check(expected, got)


class Shared(nn.Module):
    """Shares 1 among the other tokens."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.shape[0]
        return x * (1.0 / (tokens - 1) if tokens > 1 else 1.0)


def test_program_that_cannot_compute_with_a_size_does_not_run_there():
    item = ModelInput("x", torch.ones(4, 2), {0: "tokens"})
    program = traced(Shared(), [item])
    alone = replace(item, value=torch.ones(1, 2))
    found = try_to_record(program, (), (), OriginalRun((alone,), [alone.value]), ["y"])
    assert isinstance(found, DoesNotRun)
    assert "division by zero" in found.why
