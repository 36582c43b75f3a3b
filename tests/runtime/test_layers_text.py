from __future__ import annotations

from dataclasses import replace

import pytest

from moh_deploy.runtime.layer_runs import LayerRun
from moh_deploy.runtime.layers_text import constant_gates, layer_table, runs_text
from tests.handmade_package import LAYER

CONSTANT = replace(LAYER, path="decoder.0", router="constant", reason=None, active_share=0.25)


@pytest.mark.parametrize(
    ("closed_heads", "said"),
    [
        ((), ""),
        ((2,), ", for every query those of head 2"),
        ((0, 3), ", for every query those of heads 0, 3"),
    ],
)
def test_what_constant_gates_close_is_said(closed_heads: tuple[int, ...], said: str):
    (line,) = constant_gates([LAYER, replace(CONSTANT, closed_heads=closed_heads)])
    closed = "75.0 % of the (query, head) pairs are closed at export"
    assert line == f"decoder.0: no input changes its gates; {closed}{said}"


def test_constant_gates_are_made_by_no_operator():
    (row,) = layer_table("", [CONSTANT], "replaced", [True]).rows
    assert "constant" in row
    run = LayerRun("decoder.0", "kernel", None, constant_gates=True)
    assert runs_text([run]) == "1 MoH layer: attention on a kernel, gates constant"
