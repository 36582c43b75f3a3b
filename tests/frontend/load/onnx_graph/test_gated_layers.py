from __future__ import annotations

from pathlib import Path

import pytest

from moh_deploy.config.export_config import ExportConfig
from moh_deploy.frontend.inputs.onnx_inputs import build_onnx_inputs
from moh_deploy.frontend.load.checkpoint import load_onnx
from moh_deploy.frontend.normalize import normalize
from moh_deploy.frontend.prove.record import record
from moh_deploy.frontend.recognize import recognize
from moh_deploy.frontend.rewrite import commit, insert
from moh_deploy.frontend.trace import trace
from tests.frontend.load.onnx_graph.gated_layers import ATTENTION, write_layer
from tests.frontend.rewritten import assert_equal, results
from tests.nightly import sampled


@sampled(8)
@pytest.mark.parametrize("attention", ATTENTION)
def test_gated_attention_is_recognised_however_a_file_writes_it(
    attention: str, tmp_path: Path
) -> None:
    loaded = load_onnx(write_layer(tmp_path / "model.onnx", attention))
    assert loaded.original is not None
    # The lengths of GroupQueryAttention are constants of two samples.
    specs = ["x:[2,6,64]:float32"] if attention == "GroupQueryAttention" else []
    inputs = build_onnx_inputs(loaded.original.source, ExportConfig(), specs=specs)
    program = normalize(trace(loaded, inputs))
    rewrites = insert(program, recognize(program))
    assert [(one.router.top_k, one.replacement is not None) for one in rewrites] == [(2, True)]
    recording = record(program, rewrites, [item.value for item in inputs])
    assert recording.layers[0].disagreement is None
    committed = commit(program, rewrites).module()
    expected = results(loaded.callable(), inputs)
    assert_equal(results(committed, inputs), expected, ends_with=rewrites, within=1e-5)
