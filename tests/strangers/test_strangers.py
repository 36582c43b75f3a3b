"""What strangers bring: gated layers are found and replaced, or it is said what is in the way."""

import importlib
import inspect
import re
from collections.abc import Sequence
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from moh_deploy.config.options import ExportOptions
from moh_deploy.errors import ExportError, MoHDeployError
from moh_deploy.frontend.export_package import export_package
from moh_deploy.frontend.fx.arrays import to_numpy
from moh_deploy.frontend.load.model import ModelInput
from moh_deploy.frontend.recognize import survey
from moh_deploy.frontend.rewrite import insert
from moh_deploy.package import OnnxPackage
from moh_deploy.package.interface import marks_padding, mask_input
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.open_runner import open_runner
from tests.exporting import prove_in_this_process
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
    "zipformer": InTheWay(
        r"the attention weights are also used by matmul \(as_written/zipformer.py:62", 4, 0
    ),
    # Heads are gathered before they are gated, or each head has tokens of its own.
    "dense_batch": InTheWay(r"softmax was followed; lost at index"),
    "mosa_gather": InTheWay(r"softmax and its gates were followed; lost at einsum", 2, 2),
    # State is refused by the export, behind recognition.
    "tune_caches": InTheWay("", 2, 2),
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

REFUSED = {
    *("tft_interp", "mixed_tft", "flex_attention_alibi", "une_act", "une_exit", "une_nonzero"),
    *("une_perhead", "une_autograd", "une_numpy", "mixed_weather_lora", "tune_caches"),
    *("graph_points", "ptv2"),  # cdist
    "mod_moh",  # two tokens of its example are the same: a tie
}
"""Models without a package."""

WITHOUT_A_LINE = "mixed_weather_lora"
"""Eager PyTorch passes over a subclass on its fast path: no line of the model does so.

The comparison sees that outputs differ. The nodes of the graph have the lines of the subclass,
which eager mode skipped, and PyTorch's own encoder calls the layer: a line of the model would be
that of any call of an encoder, right or wrong.
"""

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


@nightly
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_package_is_right_or_the_refusal_has_line_and_remedy(
    model: ZooModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    prove_in_this_process(monkeypatch)
    module = model.build().eval()
    inputs = _called_as_parameters(module, model.inputs())
    options = ExportOptions(
        module,
        tmp_path / "package",
        inputs={item.name: to_numpy(item.value) for item in inputs},
        dynamic=tuple(
            f"{item.name}:{','.join(f'{axis}={dim}' for axis, dim in item.dims.items())}"
            for item in inputs
            if item.dims
        ),
    )
    if model.name in REFUSED:
        with pytest.raises(MoHDeployError) as caught:
            export_package(options)
        said = f"{caught.value.message} {caught.value.hint}"
        assert caught.value.hint, said
        assert re.search(r"\.py:\d+", said) or model.name == WITHOUT_A_LINE, said
        return
    layers = export_package(options).layers
    assert (len(layers), sum(layer.replaced for layer in layers)) == _counts(model)
    package = OnnxPackage.open(tmp_path / "package")
    names = [item.name for item in package.manifest.inputs]
    for sizes in ({}, {dim: size + 3 for dim, size in model.dims.items()}):
        run = model.inputs(**sizes)
        expected = _by_the_original(model, run)
        feeds = dict(zip(names, (to_numpy(item.value) for item in run), strict=True))
        valid = _valid_tokens(package.manifest.valid_tokens, feeds)
        for kernels in ("off", "auto"):
            got = open_runner(package, Variant(kernels=kernels)).run(feeds)
            for output, reference in zip(got.values(), expected, strict=True):
                _assert_close(output, reference, valid)


def _called_as_parameters(
    module: nn.Module, inputs: Sequence[ModelInput]
) -> tuple[ModelInput, ...]:
    """Return inputs, which are in the order of `forward`, by the names of its parameters."""
    parameters = inspect.signature(module.forward).parameters.values()
    names = [p.name for p in parameters if p.kind is not inspect.Parameter.VAR_POSITIONAL]
    if len(names) < len(inputs):
        return tuple(inputs)
    return tuple(replace(item, name=name) for item, name in zip(inputs, names, strict=False))


def _by_the_original(model: ZooModel, run: Sequence[ModelInput]) -> list[np.ndarray]:
    """Return outputs in float64; as the model computes them where its code names another type.

    A mask of -1e9 in rows without an open key leaves only digits of float32 there: where float64
    computes something else than the model does, the model is right.
    """
    own = _tensors(model.build().eval(), run)
    wide = [
        replace(item, value=item.value.double()) if item.value.is_floating_point() else item
        for item in run
    ]
    try:
        exact = _tensors(model.build().eval().double(), wide)
    except (RuntimeError, TypeError):
        exact = own
    return [
        to_numpy(torch.where(torch.isclose(a.double(), b.double(), 1e-5, 1e-5), a, b))
        for a, b in zip(exact, own, strict=True)
    ]


def _tensors(module: nn.Module, run: Sequence[ModelInput]) -> list[torch.Tensor]:
    """Return the tensors of an output, also of a dataclass that PyTorch does not open."""
    with torch.no_grad():
        returned = module(*(item.value.clone() for item in run))
    opened = vars(returned) if is_dataclass(returned) else returned
    return [leaf for leaf in tree_leaves(opened) if isinstance(leaf, torch.Tensor)]


def _valid_tokens(name: str | None, feeds: dict[str, np.ndarray]) -> np.ndarray | None:
    """Return which tokens [batch, tokens] count; None if all do."""
    if name is None:
        return None
    mask = feeds[mask_input(name)]
    return (mask != 0) ^ marks_padding(name) if mask.ndim == 2 else None


def _assert_close(output: np.ndarray, reference: np.ndarray, valid: np.ndarray | None) -> None:
    assert output.shape == reference.shape
    if valid is not None and output.shape[:2] == valid.shape:
        output, reference = output[valid], reference[valid]
    wide = reference.astype(np.float64)
    limit = 1e-4 * max(1.0, np.abs(wide[np.isfinite(wide)]).max(initial=0.0))
    np.testing.assert_allclose(output.astype(np.float64), wide, rtol=0, atol=limit)


def test_documentation_has_these_numbers():
    found, replaced = (sum(counts) for counts in zip(*map(_counts, MODELS), strict=True))
    gated = sum(len(model.expected.layers) for model in MODELS)
    with_package = [model for model in MODELS if model.name not in REFUSED]
    exportable = sum(len(model.expected.layers) for model in with_package)
    found_there = sum(_counts(model)[0] for model in with_package)
    assert found_there >= 0.95 * exportable
    text = " ".join((Path(__file__).parents[2] / "docs" / "recognition.md").read_text().split())
    for sentence in (
        f"{len(MODELS)} models in all, with {gated} gated layers",
        f"{found} are found, {replaced} become operators",
        f"{len(with_package)} packages come out, {len(REFUSED)} models are refused",
        f"{found_there} of {exportable} gated layers are found in models with a package",
    ):
        assert sentence in text
