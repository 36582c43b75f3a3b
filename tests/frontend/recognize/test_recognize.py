"""The zoo, animal by animal: what is recognised, and that rewriting it changes no result."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from moh_deploy.frontend.load.model import ModelInput
from moh_deploy.frontend.prove.record import record
from moh_deploy.frontend.recognize import recognize
from moh_deploy.frontend.rewrite import Rewrite, commit, insert
from tests.frontend.traced import traced
from tests.nightly import one_in
from tests.zoo import MISSED, ZOO, ExpectedLayer, ZooModel


@pytest.mark.parametrize("animal", one_in(5, ZOO), ids=lambda animal: animal.name)
def test_layers_are_recognised_and_rewriting_changes_no_result(animal: ZooModel):
    assert rewritten_layers(animal) == animal.expected.layers


@pytest.mark.parametrize("animal", MISSED, ids=lambda animal: animal.name)
def test_what_is_missed_stays_right_nevertheless(animal: ZooModel):
    # A model that is no longer missed belongs among the others.
    assert rewritten_layers(animal) != animal.expected.layers


def rewritten_layers(animal: ZooModel) -> tuple[ExpectedLayer, ...]:
    """Take a model through recognition and rewriting, check each step, and say what was found."""
    module = animal.build().eval()
    program = traced(module, animal.inputs())
    rewrites = insert(program, recognize(program))
    sizes = [{}, {dim: size + 3 for dim, size in animal.dims.items()}]
    runs = [animal.inputs(**changed) for changed in sizes]
    for run in runs:
        recording = record(program, rewrites, [item.value.clone() for item in run])
        assert [layer.disagreement for layer in recording.layers] == [None] * len(rewrites)
    committed = commit(program, rewrites)
    for run in runs:
        assert_equal(results(committed.module(), run), results(module, run), ends_with=rewrites)
    return tuple(as_expected(rewrite) for rewrite in rewrites)


def results(module: torch.nn.Module, run: Sequence[ModelInput]) -> list[Tensor]:
    with torch.no_grad():
        leaves = tree_leaves(module(*(item.value.clone() for item in run)))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def assert_equal(
    got: list[Tensor], expected: list[Tensor], *, ends_with: Sequence[Rewrite]
) -> None:
    """The outputs are equal; behind them stand the gates of each layer."""
    outputs, gates = got[: len(expected)], got[len(expected) :]
    for output, reference in zip(outputs, expected, strict=True):
        largest = max(1.0, float(reference.abs().max()))
        torch.testing.assert_close(output, reference, rtol=0, atol=1e-5 * largest)
    for tensor, rewrite in zip(gates, ends_with, strict=True):
        assert tensor.shape[2] == rewrite.layer.num_heads


def as_expected(rewrite: Rewrite) -> ExpectedLayer:
    return ExpectedLayer(
        num_heads=int(rewrite.layer.num_heads),
        num_kv_heads=rewrite.num_kv_heads,
        top_k=rewrite.router.top_k,
        num_shared_heads=rewrite.router.num_shared_heads,
        router=rewrite.router.form.name,
        replaced=rewrite.replacement is not None,
    )
