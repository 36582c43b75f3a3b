"""From a model to a package, end to end. What single steps do is tested where they live."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import moh_deploy
from moh_deploy import pipeline
from moh_deploy.backends.onnxruntime import open_session
from moh_deploy.backends.runner import Kernels
from moh_deploy.chooser import first_choices
from moh_deploy.errors import ConfigError, ExportError, ValidationError
from moh_deploy.frontend import convert
from moh_deploy.frontend.arrays import to_numpy
from moh_deploy.frontend.model import ModelInput
from moh_deploy.frontend.rewrite import Rewrite
from moh_deploy.frontend.rewrite import insert as insert_as_it_is
from moh_deploy.frontend.rewrite.token_layout import insert_token_layout
from moh_deploy.jobs.verify import verify
from moh_deploy.options import ExportOptions
from moh_deploy.package import OnnxPackage
from moh_deploy.report.export import ExportReport
from moh_deploy.validate.fresh_process import ProvenRun
from moh_deploy.validate.tolerances import tolerance_for
from tests import small_moh
from tests.zoo import ZOO, Expected, ZooModel, language
from tests.zoo.model import noise, seeded

INPUT = "x:[batch=2,seq=5,8]:float32"


@pytest.fixture(autouse=True)
def _proof_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """One for each proof would take longer than the rest; the command's tests do start them."""
    monkeypatch.setattr(pipeline, "prove", prove)


def prove(root: Path, kernels: Kernels, vectors: int | None = None) -> ProvenRun:
    report = verify(root, kernels=kernels, vectors=vectors)
    report.raise_if_unequal()
    return ProvenRun(
        report.vector_sets,
        report.max_abs_error,
        report.routing_agreement or 0.0,
        report.kernel_nodes,
        report.function_nodes,
        report.layer_runs,
        report.kernels,
    )


def export(model: nn.Module, output: Path, **options: object) -> ExportReport:
    """Export a model whose only input is `x`, unless the options say otherwise."""
    if "inputs" not in options:
        options = {"input_specs": (INPUT,), **options}
    return pipeline.export(ExportOptions(model, output, **options))


def run(root: Path, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    return open_session(OnnxPackage.open(root), kernels="off").run(inputs)


def assert_package_equals(root: Path, module: nn.Module, inputs: tuple[ModelInput, ...]) -> None:
    """The package gives what the module gives, output by output."""
    with torch.no_grad():
        returned = module.eval()(*(item.value.clone() for item in inputs))
    expected = [to_numpy(leaf) for leaf in tree_leaves(returned) if isinstance(leaf, torch.Tensor)]
    got = run(root, **{item.name: to_numpy(item.value) for item in inputs})
    for output, reference in zip(got.values(), expected, strict=True):
        assert (output.shape, output.dtype) == (reference.shape, reference.dtype)
        exact, wide = (np.asarray(array, np.float64) for array in (reference, output))
        limit = tolerance_for(reference.dtype.name).limit(float(np.abs(exact).max()))
        assert np.abs(wide - exact).max() <= limit


def sizes_of_x(*shape: int) -> tuple[ModelInput, ...]:
    return (ModelInput("x", noise(*shape)),)


def assert_nothing_is_left(output: Path) -> None:
    assert list(output.parent.iterdir()) == []


# Models of several kinds.


def animal(name: str) -> ZooModel:
    return next(each for each in ZOO if each.name == name)


def one_layer_decoder() -> ZooModel:
    """A decoder with a KV cache as varargs, a mask of length past+1, several outputs."""
    model = animal("llama_decode")
    return replace(
        model,
        build=seeded(lambda: language.DecodeStep(fixed=4, pick=2, depth=1)),
        inputs=lambda **sizes: model.inputs(**sizes)[:4],
        expected=Expected(model.expected.layers[:1]),
    )


SMALL_MOH_OPS = {"MoHAttention", "MoHRouter", "MoHQueryProjection", "MoHOutputProjection"}


@pytest.mark.parametrize(
    "model",
    [one_layer_decoder(), animal("nested_outputs"), animal("windowed_pooled")],
    ids=lambda model: model.name,
)
def test_package_equals_the_model_at_sizes_that_the_export_did_not_see(
    tmp_path: Path, model: ZooModel
):
    example = model.inputs()
    axes = [f"{i.name}:{','.join(f'{a}={d}' for a, d in i.dims.items())}" for i in example]
    report = export(
        model.build(),
        tmp_path / "package",
        inputs={item.name: to_numpy(item.value) for item in example},
        dynamic=tuple(axes),
    )
    assert [layer.router for layer in report.layers] == [e.router for e in model.expected.layers]
    assert [layer.replaced for layer in report.layers] == [
        e.replaced for e in model.expected.layers
    ]
    assert report.routing_agreement == 1.0
    for grow in (4, 11):
        inputs = model.inputs(**{dim: size + grow for dim, size in model.dims.items()})
        assert_package_equals(tmp_path / "package", model.build(), inputs)


def test_package_says_what_was_exported(tmp_path: Path):
    report = export(small_moh.build(), tmp_path / "package", output_names=("hidden",), opset=21)
    manifest = OnnxPackage.open(tmp_path / "package").manifest
    (layer,) = manifest.layers
    assert (layer.num_heads, layer.num_kv_heads, layer.head_dim) == (4, 4, 2)
    assert (layer.router, layer.num_shared_heads, layer.top_k) == ("two_stage", 2, 1)
    assert (layer.replaced, layer.router_replaced, layer.reason) == (True, True, None)
    assert (layer.batch, layer.seq_len, layer.kv_len) == (2, 5, 5)
    assert layer.active_share == 0.75
    assert manifest.dims == {"batch": 2, "seq": 5}
    assert [(one.name, one.shape) for one in manifest.inputs] == [("x", ("batch", "seq", 8))]
    assert [(one.name, one.shape) for one in manifest.outputs] == [("hidden", ("batch", "seq", 8))]
    assert manifest.ops == dict.fromkeys([f"moh::{name}" for name in SMALL_MOH_OPS], 1)
    assert layer.query_projection.endswith("MoHQueryProjection")
    assert layer.output_projection.endswith("MoHOutputProjection")
    assert (manifest.opset, manifest.precision) == (21, "float32")
    assert manifest.proof.sizes == (
        {"batch": 2, "seq": 5},
        {"batch": 3, "seq": 6},
        {"batch": 1, "seq": 1},
    )
    assert report.package == tmp_path / "package"
    assert report.max_abs_error == manifest.proof.max_abs_error < 1e-5
    model = onnx.load(tmp_path / "package" / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert {node.name for node in model.graph.node if node.domain == "moh"} >= {layer.node}


@pytest.mark.parametrize(
    ("options", "recorded"),
    [
        ({}, "float32"),
        ({"compute_type": "bfloat16"}, "bfloat16"),
        ({"overrides": ("compute_type=bfloat16",)}, "bfloat16"),
        ({"overrides": ("compute_type=bfloat16",), "compute_type": "float32"}, "float32"),
    ],
    ids=str,
)
def test_compute_type_is_recorded_and_the_option_wins_over_the_configuration(
    tmp_path: Path, options: dict[str, object], recorded: str
):
    report = export(small_moh.build(), tmp_path / "package", **options)
    assert OnnxPackage.open(tmp_path / "package").manifest.compute_type == recorded
    assert report.runs[-1].kernels.asked_compute_type == recorded


def test_model_without_moh_layers_is_exported_and_says_so(tmp_path: Path):
    model = nn.Linear(8, 3)
    report = export(model, tmp_path / "package")
    assert report.layers == ()
    assert report.to_json()["moh_layers"] == 0
    assert_package_equals(tmp_path / "package", model, sizes_of_x(4, 1, 8))


class RunsTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = small_moh.build()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.attn(self.attn(x))
        return y


def test_layers_of_one_module_are_told_apart(tmp_path: Path):
    export(RunsTwice(), tmp_path / "package")
    report = moh_deploy.tune(tmp_path / "package", choose={"attn": "sparse", "attn#2": "dense"})
    chosen = {layer.path: layer.choice for layer in report.layers}
    assert chosen == {"attn": "sparse", "attn#2": "dense"}
    verified = moh_deploy.verify(tmp_path / "package", kernels="off")
    assert {layer.path for layer in verified.layers} == chosen.keys()


def test_choices_that_depend_on_sizes_are_exported_and_proven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """So small a layer gains too little for a range, unless nothing is too little."""
    monkeypatch.setattr(first_choices, "_WORTH_MS", 0.0)
    report = export(small_moh.build(), tmp_path / "package")
    (layer,) = report.layers
    assert layer.ranges
    manifest = OnnxPackage.open(tmp_path / "package").manifest
    assert manifest.layers == report.layers
    assert manifest.tuning is None
    assert f"moh.dense::{layer.query_projection.split('.')[-1]}" in manifest.ops
    model = small_moh.build()
    for batch in (1, 400):
        assert_package_equals(tmp_path / "package", model, sizes_of_x(batch, 9, 8))


def test_large_weights_go_into_a_file_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pipeline, "EXTERNAL_DATA_BYTES", 100)
    model = nn.Linear(8, 64)
    export(model, tmp_path / "package")
    package = OnnxPackage.open(tmp_path / "package")
    assert package.manifest.files.keys() == {"model.onnx", "model.onnx.data", "vectors.npz"}
    assert_package_equals(package.root, model, sizes_of_x(3, 7, 8))


def export_half(dtype: torch.dtype, output: Path) -> ExportReport:
    inputs = {"x": to_numpy(noise(2, 5, 8).to(dtype))}
    model = small_moh.build().to(dtype)
    return export(model, output, inputs=inputs, dynamic=("x:0=batch,1=seq",))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_stays_half_precision(dtype: str, tmp_path: Path):
    torch_dtype = getattr(torch, dtype)
    (layer,) = export_half(torch_dtype, tmp_path / "package").layers
    assert layer.replaced
    assert OnnxPackage.open(tmp_path / "package").manifest.precision == dtype
    inputs = (ModelInput("x", noise(3, 4, 8, seed=5).to(torch_dtype)),)
    assert_package_equals(tmp_path / "package", small_moh.build().to(torch_dtype), inputs)


def test_model_in_memory_stays_as_it_is(tmp_path: Path):
    model = nn.Sequential(nn.Linear(8, 4), nn.Dropout(), nn.LayerNorm(4)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export(model, tmp_path / "package")
    assert all(part.training for part in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert_package_equals(tmp_path / "package", model, sizes_of_x(2, 3, 8))


# Sizes.


class WithPositions(nn.Module):
    """A table of 16 positions bounds the length, but does not fix it."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(noise(16, 8))

    def forward(self, x):
        return (x + self.positions[: x.shape[1]]).softmax(1)


def test_bounded_dimension_stays_dynamic(tmp_path: Path):
    export(WithPositions(), tmp_path / "package")
    for seq in (1, 3, 16):
        assert_package_equals(tmp_path / "package", WithPositions(), sizes_of_x(2, seq, 8))


class Reshapes(nn.Module):
    def forward(self, x):
        return x.reshape(2, -1)


def test_dimension_that_the_model_fixes_is_named(tmp_path: Path):
    with pytest.raises(ExportError, match=r"fixes dimension 'batch' \(axis 0 of input 'x'\) to 2"):
        export(Reshapes(), tmp_path / "package")
    assert_nothing_is_left(tmp_path / "package")


class BranchesOnASize(nn.Module):
    """The trace knows one side of the branch."""

    def __init__(self, branch: Callable[[int], bool]) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x):
        return x.softmax(1) if self.branch(x.shape[1]) else x * 2


BRANCHED = r"fixes dimension 'seq'|differs from the original|does not run where the original"


@pytest.mark.parametrize(
    "branch",
    [lambda size: size == 5, lambda size: size > 3, lambda size: size % 2 == 1],
    ids=["equality", "range", "remainder"],
)
def test_python_branch_on_a_size_is_refused(tmp_path: Path, branch: Callable[[int], bool]):
    with pytest.raises(ExportError, match=BRANCHED):
        export(BranchesOnASize(branch), tmp_path / "package")
    assert_nothing_is_left(tmp_path / "package")


def test_size_on_the_other_side_of_a_branch_is_refused(tmp_path: Path):
    """Too far from the example for the export to try it, so the package has to know the range."""
    export(BranchesOnASize(lambda size: size < 100), tmp_path / "package")
    np.savez(tmp_path / "in.npz", x=noise(1, 150, 8).numpy())
    with pytest.raises(ConfigError, match="'seq' is 150; the model was traced for 1 to 99"):
        moh_deploy.run(
            tmp_path / "package", inputs=tmp_path / "in.npz", outputs=tmp_path / "out.npz"
        )


# Names.


@pytest.mark.parametrize("names", [("a", "b"), ("a", "b", "c", "a")])
def test_output_names_that_do_not_fit_are_refused(tmp_path: Path, names: tuple[str, ...]):
    with pytest.raises(ConfigError, match=rf"{len(names)} output names are given"):
        export(small_moh.build(), tmp_path / "package", output_names=names)
    assert_nothing_is_left(tmp_path / "package")


class AnswersByTheNameOfItsInput(nn.Module):
    def forward(self, x):
        return {"x": x + 1}


def test_output_with_the_name_of_an_input_is_told_apart(tmp_path: Path):
    report = export(AnswersByTheNameOfItsInput(), tmp_path / "package")
    assert report.inputs[0].name == "x"
    assert_package_equals(tmp_path / "package", AnswersByTheNameOfItsInput(), sizes_of_x(1, 2, 8))


# What is wrong must not pass.


def test_weights_that_are_not_numbers_cannot_be_proven(tmp_path: Path):
    model = nn.Linear(8, 3)
    nn.init.constant_(model.weight, float("nan"))
    with pytest.raises(ValidationError, match="is itself NaN"):
        export(model, tmp_path / "package")
    assert_nothing_is_left(tmp_path / "package")


class Random(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += 1
        return x * self.seen


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Random, "differs from the original model"),
        (Remembers, "changes its own state"),
    ],
)
def test_model_that_is_no_function_of_its_inputs_is_refused(
    tmp_path: Path, make: Callable[[], nn.Module], message: str
):
    with pytest.raises(ExportError, match=message):
        export(make(), tmp_path / "package")
    assert_nothing_is_left(tmp_path / "package")


Fault = Callable[[Rewrite], None]


def wrong_scale(rewrite: Rewrite) -> None:
    *others, scale, causal = rewrite.attention.args
    rewrite.attention.args = (*others, scale * 1.05, causal)


def plant(monkeypatch: pytest.MonkeyPatch, fault: Fault) -> None:
    def insert(program, layers):
        rewrites = insert_as_it_is(program, layers)
        for rewrite in rewrites:
            fault(rewrite)
        program.graph_module.recompile()
        return rewrites

    monkeypatch.setattr(convert, "insert", insert)


def test_layer_whose_rewriting_is_wrong_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
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
    return {node.op_type for node in model.graph.node if node.domain in ("moh", "moh.dense")}


IMAGE_INPUT = {"input_specs": ("x:[batch=2,15,8]:float32",)}


def test_convolution_of_tokens_is_one_operator(tmp_path: Path):
    model = WithConvolution(small_moh.build())
    report = export(model, tmp_path / "package", **IMAGE_INPUT)
    assert _moh_operators(tmp_path / "package") == {*SMALL_MOH_OPS, "MoHTokenConv"}
    assert len(report.layers) == 1
    nodes = onnx.load(OnnxPackage.open(tmp_path / "package").model_path).graph.node
    custom = {node.name for node in nodes if node.domain.startswith("moh")}
    assert custom == {"model.MoHTokenConv", *(f"layer.{op}" for op in SMALL_MOH_OPS)}
    assert [node.name for node in nodes if not node.name.startswith(("model.", "layer."))] == []
    assert_package_equals(tmp_path / "package", model, sizes_of_x(3, 15, 8))


def test_model_without_moh_layers_keeps_its_convolutions(tmp_path: Path):
    export(WithConvolution(nn.Linear(8, 8)), tmp_path / "package", **IMAGE_INPUT)
    assert _moh_operators(tmp_path / "package") == set()


def test_token_layout_that_is_wrong_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def insert(program):
        swaps = insert_token_layout(program)
        for swap in swaps:
            swap.new.args = (*swap.new.args[:6], "none", *swap.new.args[7:])
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
    assert report.to_json()["kept"] == [asdict(kept)]
    assert OnnxPackage.open(tmp_path / "package").manifest.kept == report.kept
    assert_package_equals(tmp_path / "package", model, sizes_of_x(3, 15, 8))


def test_fault_behind_the_torch_check_is_caught_by_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def commit(program, rewrites, swaps):
        for rewrite in rewrites:
            wrong_scale(rewrite)
        return commit_as_it_is(program, rewrites, swaps)

    commit_as_it_is = convert.commit
    monkeypatch.setattr(convert, "commit", commit)
    with pytest.raises(ValidationError, match="not equal to the reference"):
        export(small_moh.build(), tmp_path / "package")
    assert_nothing_is_left(tmp_path / "package")


def test_gates_that_are_not_those_of_the_original_are_caught_by_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The outputs are right; only the gates that the package shows are of another layer."""

    def vectors(run, recording, outputs):
        found = vectors_as_they_are(run, recording, outputs)
        return replace(found, gates=tuple(gates[..., ::-1].copy() for gates in found.gates))

    vectors_as_they_are = convert.recorded_vectors
    monkeypatch.setattr(convert, "recorded_vectors", vectors)
    with pytest.raises(ValidationError, match=r"gates|routing"):
        export(small_moh.build(), tmp_path / "package")
    assert_nothing_is_left(tmp_path / "package")


class Loss(nn.Module):
    def forward(self, x):
        return {"loss": x.mean(), "any": (x > 0).any()}


def test_outputs_without_dimensions_are_compared(tmp_path: Path):
    report = export(Loss(), tmp_path / "package")
    assert [info.shape for info in report.outputs] == [(), ()]


class WantsFloat64(nn.Module):
    def forward(self, x):
        return x @ torch.eye(x.shape[-1], dtype=torch.float64)


class WritesIntoItsInput(nn.Module):
    def forward(self, x):
        x *= 2
        return x + 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (WantsFloat64, "the model itself fails|cannot trace"),
        (WritesIntoItsInput, "writes into its input 'x'"),
    ],
)
def test_error_of_the_users_model_names_it(
    tmp_path: Path, make: Callable[[], nn.Module], message: str
):
    with pytest.raises(ExportError, match=message):
        export(make(), tmp_path / "package")
    assert_nothing_is_left(tmp_path / "package")
