"""What a run shows of the layers inside a model."""

from pathlib import Path

import numpy as np

from moh_deploy.graph.layer_reads import RouterLogits
from moh_deploy.ops.routers import TOP_K
from moh_deploy.package import fingerprint
from moh_deploy.validate.reference.layer_values import (
    LayerValues,
    layer_values,
    names_to_return,
)
from tests.two_layers import write_two_layers

ROUTER = RouterLogits("a", "r", {"routed_logits": "l"}, "g", {"top_k": 1}, "y", True, TOP_K)


def test_attention_is_read_heads_first_and_tokens_first():
    values = LayerValues("g", "y", None)
    heads = np.random.default_rng(0).standard_normal((2, 4, 3, 8))  # [B, H, S, D]
    flat = heads.transpose(0, 2, 1, 3).reshape(2, 3, 32)
    expected = fingerprint(flat)
    for array in (heads, flat):
        found = values.fingerprint({"y": array}, (2, 3))
        assert found is not None
        np.testing.assert_array_equal(found, expected)
    assert values.fingerprint({}, (2, 3)) is None
    assert values.fingerprint({"y": flat}, (3, 2)) is None


def test_scores_have_the_tokens_of_the_gates():
    values = LayerValues("g", None, ROUTER)
    logits = np.random.default_rng(0).standard_normal((6, 4))
    found = values.scores({"l": logits}, (2, 3))
    assert found.shape == (2, 3, 4)
    np.testing.assert_allclose(found.sum(axis=-1), 1.0, rtol=1e-6)
    assert values.scores({"l": logits}, (2, 4)) is None


def test_session_is_asked_for_gates_logits_and_attention(tmp_path: Path):
    package = write_two_layers(tmp_path / "package")
    first, second = layer_values(package)
    assert first.logits is None  # plain operators make its gates
    assert second.logits is not None
    assert first.attention is not None
    assert names_to_return(package) == (*first.names, *second.names)
    assert second.sources.attention >= {0}
