"""What strangers bring: gated layers are found and replaced, or it is said what is in the way."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from moh_deploy.errors import ExportError
from moh_deploy.frontend.recognize import survey
from moh_deploy.frontend.rewrite import insert
from tests.frontend.rewritten import checked_layers
from tests.frontend.traced import traced
from tests.nightly import one_in, sampled
from tests.zoo.model import ZooModel

MODELS: list[ZooModel] = [
    model
    for file in sorted(Path(__file__).parent.glob("[a-z]*.py"))
    if not file.stem.startswith("test_")
    for model in importlib.import_module(f"tests.strangers.{file.stem}").MODELS
]

IN_THE_WAY = {
    # Attention that the ops do not express: near misses, with the line where it was lost.
    "differential_attention": r"softmax was followed; lost at select",
    "cait_talking": r"the scores of softmax were lost at linear",
    "xcit_covariance": r"softmax weighs channels, not tokens",
    "graph_gat": r"index_add sums over an index, as attention over edges does",
    "mixed_autocorrelation": r"sum weighs what topk chose among scores, not all keys",
    "coat_factorized": r"einsum multiplies computed tensors .* is no softmax of scores",
    # Layers that are found and stay: somebody reads what skipping heads would not compute.
    "mixed_clip": r"the attention weights are also used by view \(strangers/mixed_multimodal",
    "graph_points": r"the attention weights are also used by permute \(strangers/graph_tran",
    "bert_model_output": r"the attention weights are also an output of the model",
    "bloom_alibi": r"the attention weights are also an output of the model",
    # Programs that cannot be traced or have no form in ONNX.
    "flex_attention_alibi": r"under torch\.vmap has no form .*strangers/language_modern_tools",
    "mixed_tft": r"dimension 'past' must be 10 - future",
}
"""Models of which something is not replaced, and what is said of it."""

NOT_COMPARED_HERE = ("mixed_weather_lora", "mistral_dataclass_output")
"""PyTorch's fast path passes a subclass by in eager mode, so that an export refuses the model; the
other returns a class whose tensors nobody registered."""

EXPORTED = [model for model in MODELS if model.name not in {*IN_THE_WAY, *NOT_COMPARED_HERE}]
OTHERS = [model for model in MODELS if model.name in IN_THE_WAY]


@sampled(3)
@pytest.mark.parametrize("model", one_in(24, EXPORTED), ids=lambda model: model.name)
def test_gated_layers_are_replaced(model: ZooModel):
    module = model.build().eval()
    layers = checked_layers(traced(module, model.inputs()), module, model, within=1e-4)
    wanted = model.expected.layers
    assert len(layers) == len(wanted)
    assert sum(one.replaced for one in layers) >= sum(one.replaced for one in wanted)


@sampled(2)
@pytest.mark.parametrize("model", one_in(10, OTHERS), ids=lambda model: model.name)
def test_what_is_in_the_way_is_said(model: ZooModel):
    said = " | ".join(_said_of(model))
    assert re.search(IN_THE_WAY[model.name], said), said


def _said_of(model: ZooModel) -> list[str]:
    module = model.build().eval()
    try:
        program = traced(module, model.inputs())
    except ExportError as error:
        return [str(error)]
    found = survey(program)
    reasons = [rewrite.reason or "" for rewrite in insert(program, found.layers)]
    return [*(miss.reason for miss in found.near_misses), *reasons]
