"""The line of the user's code that a node comes from."""

import pytest
import torch
from torch.fx import Graph

from moh_deploy.frontend.fx.graph import named, source_line

CALLER = 'File "/home/me/project/models/vit.py", line 12, in forward\n    x = self.attn(x)\n'
OWN = 'File "/home/me/project/models/attention.py", line 88, in forward\n    w = w.flip(-1)\n'
TORCH = 'File "/site-packages/torch/nn/modules/linear.py", line 125, in forward\n    return x\n'


@pytest.mark.parametrize(
    ("trace", "line"),
    [
        (CALLER + OWN, "models/attention.py:88"),
        (CALLER + OWN + TORCH, "models/attention.py:88"),
        (TORCH, None),
        ("", None),
        (None, None),
        ('File "model.py", line 3, in forward\n', "model.py:3"),
        ('File "/model.py", line 3, in forward\n', "model.py:3"),
    ],
)
def test_the_innermost_line_of_the_users_is_told_from_its_directory_on(
    trace: str | None, line: str | None
):
    node = Graph().call_function(torch.relu, ())
    node.meta["stack_trace"] = trace
    assert source_line(node) == line


def test_an_operator_is_named_with_its_line_if_there_is_one():
    node = Graph().call_function(torch.ops.aten.relu.default, ())
    assert named(node) == "relu"
    node.meta["stack_trace"] = OWN
    assert named(node) == "relu (models/attention.py:88)"
