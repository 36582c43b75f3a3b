from functools import cache

import pytest
import torch
from torch.export import ExportedProgram

from moh_deploy.frontend.fx.graph import op
from moh_deploy.frontend.normalize.fold import fold_constants
from moh_deploy.frontend.prove.record import record
from moh_deploy.frontend.recognize import recognize
from moh_deploy.frontend.rewrite import Rewrite, commit, insert, router
from tests.frontend.traced import nodes, traced
from tests.nightly import nightly, one_in
from tests.zoo.model import seeded
from tests.zoo.windowed import FocusAttention, pixels_in


def inserted(dtype: torch.dtype = torch.float32) -> tuple[ExportedProgram, Rewrite]:
    (x,) = pixels_in()
    x.value.data = x.value.to(dtype)
    program = traced(seeded(FocusAttention)().to(dtype), (x,))
    (rewrite,) = insert(program, recognize(program))
    return program, rewrite


@cache
def committed() -> ExportedProgram:
    """One program for all tests that only read it."""
    program, rewrite = inserted()
    done = commit(program, [rewrite])
    fold_constants(done)
    return done


@nightly
def test_rewrite_says_what_the_layer_is():
    _, rewrite = inserted()
    assert (rewrite.op, rewrite.reason) == ("MoHAggregatedAttention", None)
    assert (rewrite.num_kv_heads, rewrite.head_dim, rewrite.kv_len) == (4, 8, 9 + 4)


def test_windows_are_gone():
    program = committed()
    for name in ("constant_pad_nd", "stack", "masked_fill", "linalg_vector_norm", "softplus"):
        assert nodes(program, name) == []
    assert len(nodes(program, "aggregated_attention")) == 1


def test_queries_keys_and_values_are_read_where_the_projections_write_them():
    (attention,) = nodes(committed(), "aggregated_attention")
    sources = [op(node) for node in attention.args[:5]]
    assert sources == ["query_projection", *["linear"] * 4]


def test_what_does_not_depend_on_the_input_is_constant():
    program = committed()
    (attention,) = nodes(program, "aggregated_attention")
    constants = attention.args[6:12]
    assert [node.op for node in constants] == ["placeholder"] * 6
    shapes = [tuple(program.constants[node.name].shape) for node in constants]
    assert shapes == [(4, 8), (4, 64), (4, 9), (4, 64, 4), (4, 8, 9), (4, 9)]


@nightly
@pytest.mark.parametrize("dtype", one_in(2, [torch.bfloat16, torch.float16]))
def test_half_precision_is_rewritten_within_its_rounding(dtype: torch.dtype):
    program, rewrite = inserted(dtype)
    assert rewrite.op == "MoHAggregatedAttention"
    (x,) = pixels_in()
    recording = record(program, [rewrite], [x.value.to(dtype)])
    assert recording.layers[0].disagreement is None
    assert {program.constants[node.name].dtype for node in rewrite.attention.args[6:12]} == {dtype}


@nightly
def test_bias_that_is_too_large_to_be_stored_stays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(router, "_LARGEST_CONSTANT_BYTES", 1000)
    _, rewrite = inserted()
    assert rewrite.replacement is None
    assert rewrite.reason == "its query scale has 256 elements, more than are stored"
