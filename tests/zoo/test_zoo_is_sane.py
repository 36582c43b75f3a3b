"""The zoo must be worth measuring on: its models run, repeat themselves and route."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from moh_deploy.frontend.load.model import ModelInput
from tests.nightly import sampled
from tests.zoo import MISSED, ZOO, ZooModel

each_model = pytest.mark.parametrize("animal", [*ZOO, *MISSED], ids=lambda animal: animal.name)


class Choices(TorchDispatchMode):
    """Records the indices that every top-k and argmax over the last axis returns."""

    def __init__(self) -> None:
        super().__init__()
        self.indices: list[Tensor] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.topk.default:
            self.indices.append(out[1])
        elif func is torch.ops.aten.argmax.default:
            self.indices.append(out[..., None])
        return out


def run(animal: ZooModel, inputs: tuple[ModelInput, ...]) -> list[Tensor]:
    with torch.no_grad():
        leaves = tree_leaves(animal.build().eval()(*(each.value for each in inputs)))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def test_names_are_unique():
    names = [animal.name for animal in (*ZOO, *MISSED)]
    assert len(set(names)) == len(names)


@sampled(8)
@each_model
def test_runs_and_repeats_itself(animal: ZooModel):
    first, second = run(animal, animal.inputs()), run(animal, animal.inputs())
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.isfinite(out).all() for out in first)


@sampled(8)
@each_model
def test_runs_at_another_size_of_every_dynamic_dimension(animal: ZooModel):
    assert animal.dims
    for dim, size in animal.dims.items():
        outputs = run(animal, animal.inputs(**{dim: size + 3}))
        assert all(torch.isfinite(out).all() for out in outputs), dim


@sampled(8)
@each_model
def test_tokens_choose_differently(animal: ZooModel):
    layers = animal.expected.layers
    choosing_all = [one for one in layers if one.top_k == one.num_heads]
    with Choices() as seen:
        run(animal, animal.inputs(**{dim: size + 6 for dim, size in animal.dims.items()}))
    # A vector of heads, without tokens, is chosen by a table of gates.
    alike = [one for one in seen.indices if one.ndim > 1 and not varies(one)]
    assert len(alike) == len(choosing_all)


def varies(indices: Tensor) -> bool:
    """Whether two tokens chose different sets; indices are [..., k]."""
    return indices.sort(-1).values.flatten(0, -2).unique(dim=0).shape[0] > 1


@sampled(8)
@each_model
def test_outputs_vary(animal: ZooModel):
    outputs = [out for out in run(animal, animal.inputs()) if out.is_floating_point()]
    assert outputs
    assert all(out.std() > 1e-3 for out in outputs)


def test_model_left_in_training_is_random_until_eval():
    (animal,) = (each for each in ZOO if each.name == "left_in_training")
    module = animal.build()
    x = animal.inputs()[0].value
    assert module.training
    assert not torch.equal(module(x), module(x))
