from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from moh_deploy.frontend.normalize import normalize
from tests.frontend.traced import nodes, plain_trace


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def test_dropout_that_drops_nothing_is_gone():
    def two(x: Tensor) -> Tensor:
        return F.dropout(F.dropout2d(x, 0.5, training=False) + 1, 0.5, training=False) * 2

    x = random(2, 3, 4, 4)
    program = normalize(plain_trace(two, x))
    assert nodes(program, "dropout") == nodes(program, "feature_dropout") == []
    torch.testing.assert_close(program.module()(x), (x + 1) * 2)


def test_dropout_that_drops_stays():
    program = normalize(plain_trace(lambda x: F.dropout(x, 0.5, training=True) * 2, random(2, 3)))
    assert len(nodes(program, "dropout")) == 1


def test_dropout_that_is_the_output_keeps_its_name():
    x = random(2, 3)
    program = normalize(plain_trace(lambda x: F.dropout(x * 2, 0.5, training=False), x))
    torch.testing.assert_close(program.module()(x), x * 2)


def test_transposing_back_is_gone():
    def model(x):
        return x.transpose(1, 2).permute(0, 2, 1, 3).norm(dim=-1)

    program = normalize(plain_trace(model, random(2, 3, 4, 5)))
    assert nodes(program, "permute") + nodes(program, "transpose") == []
    torch.testing.assert_close(program.module()(random(2, 3, 4, 5)), model(random(2, 3, 4, 5)))


def test_transposing_something_else_stays():
    def model(x):
        return x.transpose(1, 2).transpose(2, 3).norm(dim=-1)

    program = normalize(plain_trace(model, random(2, 3, 4, 5)))
    assert len(nodes(program, "transpose")) == 2


def test_cast_to_what_is_given_is_left_out():
    x = random(2, 3)
    program = normalize(plain_trace(lambda x: x.float() * x.double(), x))
    assert [node.args[1] for node in nodes(program, "to")] == [torch.float64]
    assert not nodes(program, "_assert_tensor_metadata")
    torch.testing.assert_close(program.module()(x), x * x.double())


def test_cast_that_is_an_output_stays():
    x = random(2, 3)
    program = normalize(plain_trace(lambda x: x.float(), x))
    torch.testing.assert_close(program.module()(x), x)
