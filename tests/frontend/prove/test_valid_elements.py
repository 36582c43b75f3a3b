"""Padding is left out of values whose axes are known, and of no others."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import Node

from moh_deploy.frontend.fx.containers import output_nodes
from moh_deploy.frontend.load.model import LoadedModel, ModelInput
from moh_deploy.frontend.prove.valid_elements import EVERYTHING, ValidElements
from moh_deploy.frontend.trace import trace
from moh_deploy.validate.reference.valid_tokens import ValidTokens

MASK = np.array([[True, True, False], [True, False, False]])


class Shapes(nn.Module):
    """Returns its input in forms that values have within attention."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        heads = x.unflatten(-1, (3, 2))
        return {
            "tokens": x.clone(),
            "heads": heads.transpose(1, 2),
            "flat": x.flatten(0, 1),
            "turned": x.transpose(0, 1),
            "scores": x @ x.transpose(1, 2),
            "pooled": x.sum(1),
        }


def traced(*, fixed: bool) -> tuple[ExportedProgram, list[ModelInput]]:
    dims = {} if fixed else {0: "batch", 1: "seq"}
    inputs = [ModelInput("x", torch.zeros(2, 3, 6), dims)]
    return trace(LoadedModel(Shapes(), None, "in_memory", None), inputs), inputs


NAMES = ["tokens", "heads", "flat", "turned", "scores", "pooled"]


def counted(*, fixed: bool, dims: tuple[int | str, int | str]) -> dict[str, torch.Tensor]:
    program, inputs = traced(fixed=fixed)
    elements = ValidElements.of(program, inputs, NAMES).where(ValidTokens("mask", MASK, dims))
    values = program.module()(inputs[0].value)
    nodes: dict[str, Node] = dict(zip(NAMES, output_nodes(program), strict=True))
    return {name: elements.of_node(nodes[name], values[name]) for name in NAMES}


def test_axes_are_found_by_their_sizes_in_the_program():
    found = counted(fixed=False, dims=("batch", "seq"))
    mask = torch.from_numpy(MASK)
    assert torch.equal(found["tokens"], mask[..., None].expand(2, 3, 6))
    assert torch.equal(found["heads"], mask[:, None, :, None].expand(2, 3, 3, 2))
    assert torch.equal(found["flat"], mask.reshape(6, 1).expand(6, 6))
    assert torch.equal(found["turned"], mask.T[..., None].expand(3, 2, 6))
    # Which of two axes is that of the tokens is not certain; a sum over them has none.
    assert found["scores"].all()
    assert found["pooled"].all()


def test_fixed_sizes_that_stand_twice_are_compared_whole():
    found = counted(fixed=True, dims=(2, 3))
    assert torch.equal(found["tokens"], torch.from_numpy(MASK)[..., None].expand(2, 3, 6))
    assert found["heads"].all()  # three heads, three tokens
    assert found["flat"].all()  # six numbers for each of six tokens


@pytest.mark.parametrize("name", ["tokens", "turned"])
def test_outputs_go_by_the_names_of_their_axes(name: str):
    program, inputs = traced(fixed=False)
    elements = ValidElements.of(program, inputs, NAMES)
    value = program.module()(inputs[0].value)[name]
    assert elements.of_output(name, value).all()
    kept = elements.where(ValidTokens("mask", MASK, ("batch", "seq"))).of_output(name, value)
    assert int(kept.sum()) == 3 * 6
    assert not kept[0, 2].any() if name == "tokens" else not kept[2, 0].any()


def test_without_a_mask_everything_counts():
    node = output_nodes(traced(fixed=False)[0])[0]
    assert EVERYTHING.of_node(node, torch.zeros(2, 3, 6)).all()
