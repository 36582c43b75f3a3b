"""What an export puts in the place of a model's operators stays only where it computes the same."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from moh_deploy.errors import ExportError, ValidationError
from moh_deploy.frontend import convert
from moh_deploy.frontend.prove import original
from moh_deploy.frontend.rewrite import Rewrite
from moh_deploy.frontend.rewrite import insert as insert_as_it_is
from moh_deploy.frontend.rewrite.tokens_first import insert_token_layout
from moh_deploy.ops.op_names import base_domain
from moh_deploy.package import OnnxPackage
from moh_deploy.report.report import to_json
from tests import small_moh
from tests.exporting import (
    SMALL_MOH_OPS,
    assert_nothing_is_left,
    assert_package_equals,
    export,
    prove_in_this_process,
    sizes_of_x,
)
from tests.nightly import nightly, sampled


@pytest.fixture(autouse=True)
def _proof_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    prove_in_this_process(monkeypatch)


Fault = Callable[[Rewrite], None]


def wrong_scale(rewrite: Rewrite) -> None:
    *others, scale, causal = rewrite.attention.args
    rewrite.attention.args = (*others, scale * 1.05, causal)


def plant(monkeypatch: pytest.MonkeyPatch, fault: Fault) -> None:
    def insert(program, layers, trials):
        rewrites = insert_as_it_is(program, layers, trials)
        for rewrite in rewrites:
            fault(rewrite)
        program.graph_module.recompile()
        return rewrites

    monkeypatch.setattr(convert, "insert", insert)


@nightly
def test_layer_whose_rewriting_is_wrong_stays_as_it_was(tmp_path: Path, monkeypatch):
    plant(monkeypatch, wrong_scale)
    (layer,) = export(small_moh.build(), tmp_path / "package").layers
    assert not layer.replaced
    assert layer.node is None
    assert "MoHAttention differs from the original by" in layer.reason
    assert_package_equals(tmp_path / "package", small_moh.build(), sizes_of_x(2, 3, 8))


class WithConvolution(nn.Module):
    """Tokens of a 3x5 image: an MoH layer, and a convolution where the next layer has its MLP."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.conv = layer, nn.Conv2d(8, 8, 3, padding=1, groups=8)

    def forward(self, x):
        x = x + self.layer(x)
        image = x.transpose(1, 2).reshape(x.shape[0], 8, 3, 5)
        return x + nn.functional.gelu(self.conv(image).flatten(2).transpose(1, 2))


def _moh_operators(root: Path) -> set[str]:
    model = onnx.load(OnnxPackage.open(root).model_path)
    return {node.op_type for node in model.graph.node if base_domain(node.domain)}


IMAGE_INPUT = {"input_specs": ("x:[batch=2,15,8]:float32",)}


@nightly
def test_convolution_of_tokens_is_one_operator(tmp_path: Path):
    model = WithConvolution(small_moh.build())
    report = export(model, tmp_path / "package", **IMAGE_INPUT)
    assert _moh_operators(tmp_path / "package") == {*SMALL_MOH_OPS, "MoHTokenConv"}
    assert len(report.layers) == 1
    nodes = onnx.load(OnnxPackage.open(tmp_path / "package").model_path).graph.node
    custom = {node.name for node in nodes if base_domain(node.domain)}
    assert custom == {"model.MoHTokenConv", *(f"layer.{op}" for op in SMALL_MOH_OPS)}
    assert [node.name for node in nodes if not node.name.startswith(("model.", "layer."))] == []
    assert_package_equals(tmp_path / "package", model, sizes_of_x(3, 15, 8))


@nightly
def test_model_without_moh_layers_keeps_its_convolutions(tmp_path: Path):
    export(WithConvolution(nn.Linear(8, 8)), tmp_path / "package", **IMAGE_INPUT)
    assert _moh_operators(tmp_path / "package") == set()


@nightly
def test_token_layout_that_is_wrong_stays_as_it_was(tmp_path: Path, monkeypatch):
    def insert(program):
        swaps = insert_token_layout(program)
        names = [argument.name for argument in torch.ops.moh.token_conv.default._schema.arguments]
        for swap in swaps:
            swap.new.update_arg(names.index("activation"), "none")
        program.graph_module.recompile()
        return swaps

    monkeypatch.setattr(convert, "insert_token_layout", insert)
    model = WithConvolution(small_moh.build())
    report = export(model, tmp_path / "package", **IMAGE_INPUT)
    assert _moh_operators(tmp_path / "package") == SMALL_MOH_OPS
    (kept,) = report.kept
    assert (kept.path, kept.inserted) == ("model", ("MoHTokenConv",))
    assert kept.operators == ("conv2d", "flatten", "transpose", "gelu")
    assert kept.max_abs_error is not None
    assert kept.max_abs_error > 0.01
    assert f"differs from the original by {kept.max_abs_error:.3g}" in kept.reason
    assert report.to_json()["kept"] == [to_json(kept)]
    assert OnnxPackage.open(tmp_path / "package").manifest.kept == report.kept
    assert_package_equals(tmp_path / "package", model, sizes_of_x(3, 15, 8))


@sampled(2)
@pytest.mark.parametrize("form", ["module", "program of a file"])
def test_program_that_is_normalized_wrongly_is_refused(form: str, tmp_path: Path, monkeypatch):
    def normalize(program):
        for node in program.graph.nodes:
            if node.target is torch.ops.aten.softmax.int:
                node.target = torch.ops.aten.log_softmax.int
        program.graph_module.recompile()
        return program

    monkeypatch.setattr(convert, "normalize", normalize)
    model: nn.Module | Path = small_moh.build().eval()
    if form == "program of a file":
        x = torch.zeros(2, 5, 8)
        torch.export.save(torch.export.export(model, (x,)), tmp_path / "model.pt2")
        model = tmp_path / "model.pt2"
    with pytest.raises(ExportError, match="the traced program differs from the original model"):
        export(model, tmp_path / "package", input_specs=("x:[2,5,8]:float32",))


def test_fault_behind_the_torch_check_is_caught_by_the_package(tmp_path: Path, monkeypatch):
    def commit(program, rewrites, swaps):
        for rewrite in rewrites:
            wrong_scale(rewrite)
        return commit_as_it_is(program, rewrites, swaps)

    commit_as_it_is = convert.commit
    monkeypatch.setattr(convert, "commit", commit)
    with pytest.raises(ValidationError, match="not equal to the reference"):
        export(small_moh.build(), tmp_path / "package")
    assert_nothing_is_left(tmp_path / "package")


@nightly
def test_gates_that_are_not_those_of_the_original_are_caught_by_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The outputs are right; only the gates that the package shows are of another layer."""

    def vectors(run, recording, outputs):
        found = vectors_as_they_are(run, recording, outputs)
        return replace(found, gates=tuple(gates[..., ::-1].copy() for gates in found.gates))

    vectors_as_they_are = original.recorded_vectors
    monkeypatch.setattr(original, "recorded_vectors", vectors)
    with pytest.raises(ValidationError, match=r"gates|routing"):
        export(small_moh.build(), tmp_path / "package")
    assert_nothing_is_left(tmp_path / "package")
