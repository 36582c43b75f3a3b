"""Take a program through recognition and rewriting, check each step, and say what was found."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from moh_deploy.frontend.load.model import ModelInput
from moh_deploy.frontend.prove.record import record
from moh_deploy.frontend.recognize import recognize
from moh_deploy.frontend.rewrite import Rewrite, commit, insert
from moh_deploy.frontend.rewrite.masks import mask_trials
from tests.zoo import ExpectedLayer, ZooModel


def checked_layers(
    program: ExportedProgram,
    original: Callable[..., object],
    animal: ZooModel,
    *,
    within: float = 1e-5,
) -> tuple[ExpectedLayer, ...]:
    """Return the layers of a normalized program.

    Rewriting them changes no result: at the example's sizes and at others it is the original's.

    Args:
        within: Of the largest number in an output, how far others may be off.
    """
    trials = mask_trials(program, animal.inputs())
    rewrites = insert(program, recognize(program), trials)
    sizes = [{}, {dim: size + 3 for dim, size in animal.dims.items()}]
    runs = [animal.inputs(**changed) for changed in sizes]
    for run in runs:
        recording = record(program, rewrites, [item.value.clone() for item in run])
        assert [layer.disagreement for layer in recording.layers] == [None] * len(rewrites)
    committed = commit(program, rewrites)
    for run in runs:
        got, expected = results(committed.module(), run), results(original, run)
        assert_equal(got, expected, ends_with=rewrites, within=within)
    return tuple(as_expected(rewrite) for rewrite in rewrites)


def results(model: Callable[..., object], run: Sequence[ModelInput]) -> list[Tensor]:
    with torch.no_grad():
        leaves = tree_leaves(model(*(item.value.clone() for item in run)))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def assert_equal(
    got: list[Tensor], expected: list[Tensor], *, ends_with: Sequence[Rewrite], within: float
) -> None:
    """The outputs are equal; behind them stand the gates of each layer."""
    outputs, gates = got[: len(expected)], got[len(expected) :]
    for output, reference in zip(outputs, expected, strict=True):
        largest = max(1.0, float(reference.double().abs().max()))
        torch.testing.assert_close(output, reference, rtol=0, atol=within * largest)
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
