"""From a model to a package, end to end. What single steps do is tested where they live."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import moh_deploy
from moh_deploy.errors import ConfigError, ExportError, ValidationError
from moh_deploy.frontend import export_package as pipeline
from moh_deploy.frontend.export_report import ExportReport
from moh_deploy.frontend.fx.arrays import to_numpy
from moh_deploy.frontend.load.model import ModelInput
from moh_deploy.package import DimSum, OnnxPackage, PackageWriter
from moh_deploy.perf.cost_model import first_choices, milliseconds
from moh_deploy.validate.reference.layer_values import Recorder
from tests import small_moh
from tests.exporting import (
    SMALL_MOH_OPS,
    assert_nothing_is_left,
    assert_package_equals,
    export,
    prove_in_this_process,
    sizes_of_x,
)
from tests.nightly import nightly, one_in, sampled
from tests.zoo import ZOO, Expected, ZooModel, language
from tests.zoo.model import noise, seeded


@pytest.fixture(autouse=True)
def _proof_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    prove_in_this_process(monkeypatch)


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


@nightly
@pytest.mark.parametrize(
    "model",
    [
        one_layer_decoder(),
        pytest.param(animal("nested_outputs"), marks=nightly),
        pytest.param(animal("windowed_pooled"), marks=nightly),
    ],
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


@nightly
@pytest.mark.parametrize(
    "name",
    one_in(3, ["select_bias_corrected", "select_fixed_and_chosen", "select_top_then_softmax"]),
)
def test_package_knows_the_margins_that_the_original_had(tmp_path: Path, name: str):
    model = animal(name)
    inputs = {item.name: to_numpy(item.value) for item in model.inputs()}
    export(model.build(), tmp_path / "package", inputs=inputs, dynamic=("x:0=batch,1=seq",))
    package = OnnxPackage.open(tmp_path / "package")
    recorder = Recorder.of(package)
    for vectors in package.vectors:
        (margins,), (recorded,) = recorder.record(vectors.inputs).margins, vectors.margins
        np.testing.assert_allclose(margins, recorded, rtol=0, atol=1e-6)
        assert 0 < recorded.min() <= recorded.max() < np.inf
    assert moh_deploy.probe(tmp_path / "package", kernels="off").passed


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
    assert [(i.name, i.shape) for i in manifest.inputs] == [("x", ("batch", "seq", 8))]
    assert [(o.name, o.shape) for o in manifest.outputs] == [("hidden", ("batch", "seq", 8))]
    assert manifest.ops == dict.fromkeys(
        [
            f"moh.dense::{name}" if "Projection" in name else f"moh::{name}"
            for name in SMALL_MOH_OPS
        ],
        1,
    )
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


@nightly
@pytest.mark.parametrize(
    ("options", "recorded"),
    [
        pytest.param({}, "float32", marks=nightly),
        pytest.param({"compute_type": "bfloat16"}, "bfloat16", marks=nightly),
        pytest.param({"overrides": ("compute_type=bfloat16",)}, "bfloat16", marks=nightly),
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


@nightly
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


@nightly
def test_layers_of_one_module_are_told_apart(tmp_path: Path):
    export(RunsTwice(), tmp_path / "package")
    report = moh_deploy.tune(tmp_path / "package", choose={"attn": "sparse", "attn#2": "dense"})
    chosen = {layer.path: layer.choice for layer in report.layers}
    assert chosen == {"attn": "sparse", "attn#2": "dense"}
    verified = moh_deploy.verify(tmp_path / "package", kernels="off")
    assert {layer.path for layer in verified.layers} == chosen.keys()


@sampled(2)
@pytest.mark.parametrize(
    ("name", "paths"), [("twice_on_the_same", ["attn"]), ("split_queries", ["model", "model#2"])]
)
def test_layers_that_could_be_merged_or_folded_are_those_of_the_package(
    tmp_path: Path, name: str, paths: list[str]
):
    model = animal(name)
    (x,) = model.inputs()
    dynamic = ",".join(f"{axis}={dim}" for axis, dim in x.dims.items())
    inputs = {"x": to_numpy(x.value)}
    report = export(model.build(), tmp_path / "package", inputs=inputs, dynamic=(f"x:{dynamic}",))
    assert [(layer.path, layer.replaced) for layer in report.layers] == [(p, True) for p in paths]
    assert report.ungated == 0
    assert_package_equals(tmp_path / "package", model.build(), model.inputs(seq=11))


def test_choices_that_depend_on_sizes_are_exported_and_proven(tmp_path: Path, monkeypatch):
    """With planted costs of projections, of which the sparse ones pay from 16 tokens on."""
    monkeypatch.setattr(first_choices, "_WORTH_MS", 0.0)
    planted = {
        "dense_projection": {"multiply-add": 1.0},
        "sparse_projection": {"call": 1000.0},
    }
    monkeypatch.setattr(milliseconds, "COSTS", {**milliseconds.COSTS, **planted})
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


@nightly
@pytest.mark.parametrize("dtype", one_in(2, ["float16", "bfloat16"]))
def test_half_precision_stays_half_precision(dtype: str, tmp_path: Path):
    torch_dtype = getattr(torch, dtype)
    (layer,) = export_half(torch_dtype, tmp_path / "package").layers
    assert layer.replaced
    assert OnnxPackage.open(tmp_path / "package").manifest.precision == dtype
    inputs = (ModelInput("x", noise(3, 4, 8, seed=5).to(torch_dtype)),)
    assert_package_equals(tmp_path / "package", small_moh.build().to(torch_dtype), inputs)


class UnderAutocast(nn.Linear):
    """Rounds its sum and its bias at once, ONNX Runtime one after the other."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x).float()


@nightly
def test_model_that_differs_under_autocast_is_refused_with_what_to_do(tmp_path: Path):
    model = seeded(lambda: UnderAutocast(8, 64))()
    with pytest.raises(ValidationError) as raised:
        export(model, tmp_path / "package")
    assert raised.value.hint is not None
    assert raised.value.hint.startswith("linear computes in bfloat16, the model in float32")
    assert_nothing_is_left(tmp_path / "package")


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
    """By a plain number: what `len` returns is one in a trace, too."""

    def forward(self, x):
        return x.reshape(len(x), -1)


def test_dimension_that_the_model_fixes_is_named(tmp_path: Path):
    with pytest.raises(
        ExportError, match=r"fixes dimension 'batch' \(axis 0 of input 'x'\) to 2"
    ) as no:
        export(Reshapes(), tmp_path / "package")
    assert "len(x)" in str(no.value.hint)
    assert_nothing_is_left(tmp_path / "package")


class BranchesOnASize(nn.Module):
    """The trace knows one side of the branch."""

    def __init__(self, branch: Callable[[int], bool]) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x):
        return x.softmax(1) if self.branch(x.shape[1]) else x * 2


BRANCHED = (
    r"fixes dimension 'seq'|must be 2\*seq\+1|differs from the original"
    r"|does not run where the original"
)


@nightly
def test_size_on_the_other_side_of_a_branch_is_refused(tmp_path: Path):
    """Too far from the example for the export to try it, so the package has to know the range."""
    export(BranchesOnASize(lambda size: size < 100), tmp_path / "package")
    np.savez(tmp_path / "in.npz", x=noise(1, 150, 8).numpy())
    with pytest.raises(ConfigError, match="'seq' is 150; the model was traced for 1 to 99"):
        moh_deploy.run(
            tmp_path / "package", inputs=tmp_path / "in.npz", outputs=tmp_path / "out.npz"
        )


@nightly
def test_branch_on_a_range_limits_a_size_and_it_is_said_why(tmp_path: Path):
    report = export(BranchesOnASize(lambda size: size > 3), tmp_path / "package")
    assert report.dim_ranges == {"seq": (4, None)}
    assert re.search(
        r"Dimension 'seq' may be 4 to any size: the trace is not good at seq=3: .* is off by .*"
        r"; it was traced for seq >= 4\.",
        report.to_markdown(),
    )
    np.savez(tmp_path / "in.npz", x=noise(1, 3, 8).numpy())
    with pytest.raises(ConfigError, match="'seq' is 3; the model was traced for 4 to any size"):
        moh_deploy.run(
            tmp_path / "package", inputs=tmp_path / "in.npz", outputs=tmp_path / "out.npz"
        )


class RowsOfPatches(nn.Module):
    """Torch traces sizes as 2 or more, and asserts that rows of patches are so."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Conv2d(3, 8, 2, 2), nn.Linear(8, 4)

    def forward(self, x):
        return self.out(self.stem(x).flatten(2).transpose(1, 2))


@nightly
def test_size_one_that_the_trace_alone_limits_is_taken(tmp_path: Path):
    images, dynamic = noise(2, 3, 8, 6).numpy(), ("x:0=batch,2=2*h,3=2*w",)
    model = seeded(RowsOfPatches)()
    export(model, tmp_path / "package", inputs={"x": images}, dynamic=dynamic)
    manifest = OnnxPackage.open(tmp_path / "package").manifest
    assert manifest.dim_ranges == {}
    assert manifest.proof.sizes[-1] == {"batch": 1, "h": 1, "w": 1}
    assert_package_equals(tmp_path / "package", model, sizes_of_x(2, 3, 2, 6))


class PaddedWindows(nn.Module):
    """Pads to whole windows of 4; of one window, the trace would make a constant."""

    def forward(self, x):
        x = nn.functional.pad(x, (0, 0, 0, -x.shape[1] % 4)).unflatten(1, (-1, 4))
        return (x @ x.transpose(2, 3)).softmax(-1).sum(1)


@nightly
def test_limit_of_the_trace_that_is_none_of_the_models_is_lifted(tmp_path: Path):
    x, dynamic = noise(2, 9, 8).numpy(), ("x:0=batch,1=seq",)
    export(PaddedWindows(), tmp_path / "package", inputs={"x": x}, dynamic=dynamic)
    manifest = OnnxPackage.open(tmp_path / "package").manifest
    assert manifest.dim_ranges == {}
    assert manifest.proof.sizes[-1] == {"batch": 1, "seq": 1}
    for seq in (1, 3, 4, 5, 12):
        assert_package_equals(tmp_path / "package", PaddedWindows(), sizes_of_x(2, seq, 8))


class StepWithPositions(nn.Module):
    """A step of a decoder with a cache and a table of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.positions, self.keys = nn.Parameter(torch.randn(16, 4)), nn.Linear(4, 4)

    def forward(self, x, past):
        start = past.shape[1]
        x = x + self.positions[start : start + x.shape[1]]
        keys = torch.cat([past, self.keys(x)], 1)
        return (x @ keys.transpose(1, 2)).softmax(-1) @ keys, keys


@nightly
def test_cache_may_be_empty(tmp_path: Path):
    """As at the first step: the original takes it, and the package was proven on it."""
    model, arrays = seeded(StepWithPositions)(), {"x": noise(2, 3, 4), "past": noise(2, 5, 4)}
    arrays = {name: to_numpy(value) for name, value in arrays.items()}
    dynamic = ("x:0=batch,1=seq", "past:0=batch,1=past")
    export(model, tmp_path / "package", inputs=arrays, dynamic=dynamic)
    manifest = OnnxPackage.open(tmp_path / "package").manifest
    assert {"batch": 2, "seq": 3, "past": 0} in manifest.proof.sizes
    assert manifest.dim_ranges == {"seq": (1, 16), "past": (0, 15)}
    assert manifest.dim_sums == (DimSum(("past", "seq"), 16, "positions"),)
    for seq, past in ((4, 0), (16, 0), (1, 15)):
        given = [ModelInput("x", noise(2, seq, 4)), ModelInput("past", noise(2, past, 4))]
        assert_package_equals(tmp_path / "package", model, given)
    np.savez(tmp_path / "in.npz", x=noise(2, 3, 4).numpy(), past=noise(2, 15, 4).numpy())
    with pytest.raises(
        ConfigError, match=r"past \+ seq is 18; the model was traced for 16 at most"
    ):
        moh_deploy.run(
            tmp_path / "package", inputs=tmp_path / "in.npz", outputs=tmp_path / "out.npz"
        )


class StepWithAMask(nn.Module):
    """The length of its mask follows from two others."""

    def forward(self, x, past, mask):
        keys = torch.cat([past, x], 1)
        scores = x @ keys.transpose(1, 2)
        return scores.masked_fill(mask[:, None] == 0, -1e4).softmax(-1) @ keys, keys


class StepWithALongMask(nn.Module):
    """A step whose mask may have another length; eager mode ignores a mask that hides nothing."""

    def forward(self, x, past, mask):
        keys = torch.cat([past, x], 1)
        scores = x @ keys.transpose(1, 2)
        if torch.compiler.is_compiling() or not mask.all():
            missing = keys.shape[1] - mask.shape[1]
            mask = nn.functional.pad(mask, (0, missing)) if missing > 0 else mask
            mask = mask[:, torch.arange(keys.shape[1])]
            scores = scores.masked_fill(mask[:, None] == 0, -1e4)
        return scores.softmax(-1) @ keys, keys


@sampled(2)
@pytest.mark.parametrize("step", [StepWithAMask, StepWithALongMask])
def test_dimension_that_follows_from_others_limits_none_of_them(
    tmp_path: Path, step: type[nn.Module]
):
    arrays = {"x": noise(2, 3, 4), "past": noise(2, 5, 4), "mask": torch.ones(2, 8)}
    arrays = {name: to_numpy(value) for name, value in arrays.items()}
    dynamic = ("x:0=batch,1=seq", "past:0=batch,1=past", "mask:0=batch,1=total")
    export(step(), tmp_path / "package", inputs=arrays, dynamic=dynamic)
    manifest = OnnxPackage.open(tmp_path / "package").manifest
    assert manifest.dim_ranges == {}
    assert {"batch": 1, "seq": 1, "past": 1, "total": 2} in manifest.proof.sizes
    assert {"batch": 2, "seq": 3, "past": 0, "total": 3} in manifest.proof.sizes


class HeadsChooseTokens(nn.Module):
    """Each head takes four tokens, which nothing tells apart but their ids."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.router, self.qkv = (
            nn.Embedding(100, 16),
            nn.Linear(16, 4),
            nn.Linear(16, 48),
        )

    def forward(self, ids):
        x = self.table(ids)
        query, key, value = self.qkv(x).unflatten(2, (3, 4, 4)).permute(2, 0, 3, 1, 4)
        scores, chosen = self.router(x).softmax(-1).topk(4, dim=1)
        gates = torch.zeros(*x.shape[:2], 4).scatter(1, chosen, scores)
        heads = (query @ key.transpose(2, 3)).softmax(-1) @ value
        return (heads.transpose(1, 2) * gates[..., None]).flatten(2)


@nightly
def test_inputs_of_other_sizes_have_no_tokens_that_tie(tmp_path: Path):
    ids = torch.randperm(100, generator=torch.Generator().manual_seed(2))[:14].reshape(2, 7)
    report = export(
        seeded(HeadsChooseTokens)(),
        tmp_path / "package",
        inputs={"ids": ids.numpy()},
        dynamic=("ids:0=batch,1=seq",),
    )
    assert report.routing_agreement == 1
    assert report.vector_sets == 3
    assert report.dim_ranges == {"seq": (4, None)}
    assert "the original model does not take seq=3" in report.limits["seq"]


# Names.


@sampled(2)
@pytest.mark.parametrize("names", [("a", "b"), ("a", "b", "c", "a")])
def test_output_names_that_do_not_fit_are_refused(tmp_path: Path, names: tuple[str, ...]):
    with pytest.raises(ConfigError, match=rf"{len(names)} output names are given"):
        export(small_moh.build(), tmp_path / "package", output_names=names)
    assert_nothing_is_left(tmp_path / "package")


class AnswersByTheNameOfItsInput(nn.Module):
    def forward(self, x):
        return {"x": x + 1}


@nightly
def test_output_with_the_name_of_an_input_is_told_apart(tmp_path: Path):
    report = export(AnswersByTheNameOfItsInput(), tmp_path / "package")
    assert report.inputs[0].name == "x"
    assert_package_equals(tmp_path / "package", AnswersByTheNameOfItsInput(), sizes_of_x(1, 2, 8))


# What is wrong must not pass.


@nightly
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


class Loss(nn.Module):
    def forward(self, x):
        return {"loss": x.mean(), "any": (x > 0).any()}


@nightly
def test_outputs_without_dimensions_are_compared(tmp_path: Path):
    report = export(Loss(), tmp_path / "package")
    assert [info.shape for info in report.outputs] == [(), ()]
    root = tmp_path / "package"
    assert moh_deploy.verify(root, kernels="off").equal
    package = OnnxPackage.open(root)
    recorded = [
        replace(run, outputs={**run.outputs, "loss": run.outputs["loss"] + 1})
        for run in package.vectors
    ]
    model = onnx.load(package.model_path)
    with PackageWriter(root) as writer:
        onnx.save(model, writer.path("model.onnx"))
        writer.finish(package.manifest, recorded, package.corpus)
    verdict = moh_deploy.verify(root, kernels="off")
    assert not verdict.equal
    assert "'loss'" in str(verdict.failure)


class WantsFloat64(nn.Module):
    def forward(self, x):
        return x @ torch.eye(x.shape[-1], dtype=torch.float64)


class WritesIntoItsInput(nn.Module):
    def forward(self, x):
        x *= 2
        return x + 1


@sampled(3)
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Random, "differs from the original model"),
        (Remembers, r"changes its own state .*'\w+', at \w+/test_export_package\.py:\d+\."),
        (WantsFloat64, "the model itself fails|cannot trace"),
        (WritesIntoItsInput, r"writes into its input 'x', at \w+/test_export_package\.py:\d+\."),
        (lambda: BranchesOnASize(lambda size: size == 5), BRANCHED),
        (lambda: BranchesOnASize(lambda size: size % 2 == 1), BRANCHED),
    ],
)
def test_model_that_no_graph_computes_is_refused(
    tmp_path: Path, make: Callable[[], nn.Module], message: str
):
    with pytest.raises(ExportError, match=message):
        export(make(), tmp_path / "package")
    assert_nothing_is_left(tmp_path / "package")


class Experts(small_moh.SmallMoH):
    """Two experts behind the attention, with a router of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.route, self.one, self.other = nn.Linear(8, 2), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        weights = self.route(x).softmax(-1)
        return self.one(y) * weights[..., :1] + self.other(y) * weights[..., 1:2]


class FlippedWeights(small_moh.SmallMoH):
    """No op has such weights: recognition ends there."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        y = ((q @ k.mT).softmax(-1).flip(-1) @ v).transpose(1, 2)
        return self.out((y * self.gates(x).unsqueeze(-1)).flatten(2))


@nightly
def test_what_looks_like_a_layer_is_in_the_package_and_may_be_refused(tmp_path: Path):
    report = export(FlippedWeights(), tmp_path / "package")
    (miss,) = report.near_misses
    assert (miss.paths, miss.reason) == (("model",), "softmax was followed; lost at flip")
    assert OnnxPackage.open(tmp_path / "package").manifest.near_misses == (miss,)
    refused = tmp_path / "refused" / "package"
    refused.parent.mkdir()
    with pytest.raises(ExportError, match=rf"lost at flip \({miss.place}\)"):
        export(FlippedWeights(), refused, overrides=("require_layers=all",))
    assert_nothing_is_left(refused)


@nightly
def test_a_router_of_experts_is_in_the_package_and_no_layer_that_is_missing(tmp_path: Path):
    report = export(Experts(), tmp_path / "package", overrides=("require_layers=all",))
    (other,) = report.other_routers
    assert (other.paths, other.router, other.weighs) == (("model",), "softmax of 2", "linear")
    manifest = OnnxPackage.open(tmp_path / "package").manifest
    assert (len(manifest.layers), manifest.other_routers) == (1, (other,))


@nightly
@pytest.mark.parametrize(
    "dynamic", [("input_ids:0=batch,1=seq", "attention_mask:0=batch,1=seq"), ()]
)
def test_a_router_may_have_no_numbers_for_padding(dynamic: tuple[str, ...], tmp_path: Path):
    """The embedding of padding is 0, as `padding_idx` makes it, and its logits are 0 / 0."""
    model = animal("llama_prefill")
    ids, mask = (item.value.clone() for item in model.inputs(batch=3))
    ids[ids == 0], ids = 1, ids * mask
    module = model.build()
    with torch.no_grad():
        module.embed_tokens.weight[0] = 0
    inputs = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
    report = export(module, tmp_path / "package", inputs=inputs, dynamic=dynamic)
    assert [layer.replaced for layer in report.layers] == [True, True]
    for run in OnnxPackage.open(tmp_path / "package").vectors:
        assert (run.inputs["input_ids"][run.inputs["attention_mask"] != 0] != 0).all()
