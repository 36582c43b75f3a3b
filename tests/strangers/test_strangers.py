"""What strangers bring: gated layers are found and replaced, or it is said what is in the way."""

import importlib
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from moh_deploy.errors import ExportError
from moh_deploy.frontend.recognize import survey
from moh_deploy.frontend.rewrite import insert
from tests.frontend.rewritten import checked_layers
from tests.frontend.traced import traced
from tests.nightly import nightly, one_in, sampled
from tests.zoo.model import ZooModel

MODELS: list[ZooModel] = [
    model
    for file in sorted(Path(__file__).parent.glob("[a-z]*.py"))
    if not file.stem.startswith("test_")
    for model in importlib.import_module(f"tests.strangers.{file.stem}").MODELS
]


class InTheWay(NamedTuple):
    """What is said of a model, and how many layers are found and become operators all the same."""

    said: str
    found: int = 0
    replaced: int = 0


IN_THE_WAY = {
    # Attention that the ops do not express: near misses, with the line where it was lost.
    "differential_attention": InTheWay(r"softmax was followed; lost at select"),
    "cait_talking": InTheWay(r"the scores of softmax were lost at linear", 1, 1),
    "xcit_covariance": InTheWay(r"softmax weighs channels, not tokens"),
    "graph_gat": InTheWay(r"index_add sums over an index, as attention over edges does"),
    "mixed_autocorrelation": InTheWay(r"sum weighs what topk chose among scores, not all keys"),
    "coat_factorized": InTheWay(r"einsum multiplies computed tensors .* is no softmax of scores"),
    # Layers that are found and stay: somebody reads what skipping heads would not compute.
    "mixed_clip": InTheWay(
        r"the attention weights are also used by view \(strangers/mixed_multimodal", 3, 2
    ),
    "graph_points": InTheWay(
        r"the attention weights are also used by permute \(strangers/graph_tran", 2, 0
    ),
    "bert_model_output": InTheWay(r"the attention weights are also an output of the model", 2, 1),
    "bloom_alibi": InTheWay(r"the attention weights are also an output of the model", 1, 0),
    "sana": InTheWay(r"matmul multiplies computed tensors .* is no softmax of scores", 1, 1),
    "ptv2": InTheWay(r"einsum multiplies computed tensors .* is no softmax of scores"),
    # Projections of each head are experts.
    "switchhead": InTheWay(r"lost at einsum, before heads were merged"),
    "egt": InTheWay(r"clamp \(as_written/egt.py:22\) stands between the scores and their", 2, 0),
    "gemma2": InTheWay(r"tanh \(as_written/gemma2.py:51\) stands between the scores", 3, 1),
    "gptoss_sink": InTheWay(r"cat \(as_written/gptoss_sink.py:53\) joins the scores", 2, 0),
    "tisasrec": InTheWay(r"add \(as_written/tisasrec.py:33\) combines the attention output", 2, 0),
    # Sigmoids for all heads: an operator, with nothing to skip in a layer of two.
    "qwen3_hf": InTheWay("", 2, 2),
    # Programs that cannot be traced or have no form in ONNX.
    "tft_interp": InTheWay(r"fixes dimension 'n' .*as_written/tft_interp.py:53"),
    "une_act": InTheWay(r"Python reads a value of a tensor.*as_written/une_act.py:17"),
    "une_exit": InTheWay(r"Python reads a value of a tensor.*as_written/une_exit.py:30"),
    "une_nonzero": InTheWay(r"Python reads a value of a tensor.*as_written/une_nonzero.py:19"),
    "une_perhead": InTheWay(r"Python reads a value of a tensor.*as_written/une_perhead.py:22"),
    "une_autograd": InTheWay(r"\.numpy\(\) is not supported.*as_written/une_autograd.py:9"),
    "une_numpy": InTheWay(r"\.numpy\(\) is not supported.*as_written/une_numpy.py:16"),
    "flex_attention_alibi": InTheWay(
        r"under torch\.vmap has no form .*strangers/language_modern_tools"
    ),
    "mixed_tft": InTheWay(r"dimension 'past' must be 10 - future"),
}
"""Models of which something is not as they expect it."""

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
    assert [one.replaced for one in layers] == [one.replaced for one in model.expected.layers]


@sampled(2)
@pytest.mark.parametrize("model", one_in(10, OTHERS), ids=lambda model: model.name)
def test_what_is_in_the_way_is_said(model: ZooModel):
    said, *counts = _found_in(model)
    assert re.search(IN_THE_WAY[model.name].said, said), said
    assert tuple(counts) == _counts(model)


@nightly
@pytest.mark.parametrize("name", NOT_COMPARED_HERE)
def test_layers_are_found_where_the_model_cannot_be_compared(name: str):
    (model,) = (one for one in MODELS if one.name == name)
    assert _found_in(model) == InTheWay("", *_counts(model))


def _found_in(model: ZooModel) -> InTheWay:
    try:
        program = traced(model.build().eval(), model.inputs())
    except ExportError as error:
        return InTheWay(str(error))
    found = survey(program)
    rewrites = insert(program, found.layers)
    reasons = [one.reason or "" for one in rewrites if one.replacement is None]
    said = " | ".join([*(miss.reason for miss in found.near_misses), *reasons])
    return InTheWay(said, len(rewrites), len(rewrites) - len(reasons))


def _counts(model: ZooModel) -> tuple[int, int]:
    """Return how many layers of a model are found, and how many become operators."""
    if model.name in IN_THE_WAY:
        return IN_THE_WAY[model.name][1:]
    layers = model.expected.layers
    return len(layers), sum(one.replaced for one in layers)


def test_documentation_has_these_numbers():
    found, replaced = (sum(counts) for counts in zip(*map(_counts, MODELS), strict=True))
    gated = sum(len(model.expected.layers) for model in MODELS)
    text = " ".join((Path(__file__).parents[2] / "docs" / "recognition.md").read_text().split())
    assert f"{len(MODELS)} models in all, with {gated} gated layers" in text
    assert f"{found} are found, {replaced} become operators" in text
