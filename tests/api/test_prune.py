"""Packages with the same heads for every token are the ones they were made from, gates fixed."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import moh_deploy
from moh_deploy.api.prune import prune
from moh_deploy.config.options import ExportOptions
from moh_deploy.derive.forms import with_top_k
from moh_deploy.errors import ConfigError, ValidationError
from moh_deploy.frontend.export_package import export_package
from moh_deploy.graph import prune_heads as edit
from moh_deploy.graph.narrowing import layer_edit
from moh_deploy.graph.narrowing.layer_edit import KeyHeads
from moh_deploy.graph.narrowing.narrowing import Entries
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import FUNCTION_BODIES
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.runtime.variants import PackageVariants
from moh_deploy.validate.reference.layer_values import HeadLoads
from tests.cuda.trt.packages import FORMS, export
from tests.grouped_package import HEADS, PATH, write_grouped
from tests.nightly import nightly
from tests.projected_package import write_projected
from tests.two_layers import write_two_layers


@pytest.fixture
def package(tmp_path: Path) -> OnnxPackage:
    return write_grouped(tmp_path / "package")


def weights_of(package: OnnxPackage) -> dict[str, tuple[int, ...]]:
    graph = onnx.load(package.model_path).graph
    return {item.name: tuple(item.dims) for item in graph.initializer}


@pytest.mark.parametrize(("keep", "by"), [(1, "load"), (3, "gate"), (4, "load"), (HEADS, "load")])
def test_pruned_package_is_the_whole_one_with_gates_fed(
    package: OnnxPackage, tmp_path: Path, keep: int, by: str
):
    report = prune(package.root, tmp_path / "pruned", keep=keep, by=by)  # type: ignore[arg-type]
    pruned = OnnxPackage.open(tmp_path / "pruned")
    (layer,) = report.layers
    kept = list(layer.fixed.kept)
    # By another way than the command's own: gates are what is fed here, whatever it recorded.
    gates = np.zeros((2, 3, HEADS), np.float32)
    gates[..., kept] = layer.fixed.gates
    types = {"gates": np.dtype("float32")}
    x = package.vectors[0].inputs
    with PackageVariants(package, FUNCTION_BODIES).forced(types) as runner:
        expected = runner.run({**x, "gates.forced": gates})["y"]
    with open_runner(pruned) as runner:
        found = runner.run(x)["y"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (pruned.vectors[0].gates[0] == gates[..., kept]).all()
    moh_deploy.verify(pruned.root).raise_if_unequal()


def test_weights_are_cut_and_the_router_is_gone(package: OnnxPackage, tmp_path: Path):
    report = prune(package.root, tmp_path / "pruned", keep=4)
    pruned = OnnxPackage.open(tmp_path / "pruned")
    shapes = sorted(shape for shape in weights_of(pruned).values() if len(shape) == 2)
    # Queries [8, 4 heads * 4], output [4 heads * 4, 8]; no [8, 5] of the router.
    assert (8, 16) in shapes
    assert (16, 8) in shapes
    assert not {(8, 24), (24, 8), (8, 5)} & set(shapes)
    operators = {node.op_type for node in onnx.load(pruned.model_path).graph.node}
    assert "MoHRouter" not in operators
    (layer,) = pruned.manifest.layers
    assert (layer.router, layer.num_heads, layer.active_share) == ("constant", 4, 1.0)
    assert pruned.manifest.made.kept == (report.layers[0].fixed.kept,)
    assert report.after.parameters < report.before.parameters
    assert report.before.flops is not None
    assert report.after.flops is not None
    assert report.after.flops < report.before.flops


def test_reports_say_that_it_is_another_model(package: OnnxPackage, tmp_path: Path):
    prune(package.root, tmp_path / "pruned", keep=4)
    text = moh_deploy.verify(tmp_path / "pruned").to_markdown()
    assert "the same heads for every token, 4 heads a layer, chosen by load" in text
    assert "(not the original model)" in text


def test_answer_against_the_original_says_what_it_is_equal_to_instead(
    package: OnnxPackage, tmp_path: Path
):
    prune(package.root, tmp_path / "pruned", keep=4)
    report = moh_deploy.verify(tmp_path / "pruned", against=[package.root])
    assert report.failure.exit_code == 1
    digest = package.manifest.files["model.onnx"][:12]
    assert "The package is another model than the one that it was made from (" in str(
        report.failure
    )
    assert f"proven equal to the package of model sha256 {digest}... changed in the same" in str(
        report.failure
    )
    # Of what it is equal to there is nothing to explain, nor of a fault in it.
    same = moh_deploy.verify(tmp_path / "pruned", against=["functions"])
    assert same.equal
    assert not any("another model" in note for note in same.notes)


def test_counts_on_the_users_inputs(package: OnnxPackage, tmp_path: Path):
    x = np.random.default_rng(9).standard_normal((5, 7, 8)).astype(np.float32)
    np.savez(tmp_path / "inputs.npz", x=x)
    report = prune(package.root, tmp_path / "pruned", keep=3, inputs=[tmp_path / "inputs.npz"])
    gates = PackageVariants(package).forced({}, ("gates",)).run({"x": x})["gates"]
    assert report.tokens == 35
    np.testing.assert_allclose(
        report.layers[0].loads.load, (gates != 0).mean(axis=(0, 1)), atol=1e-6
    )


def test_most_used_heads_are_kept_and_the_shared_one_first():
    loads = HeadLoads(10, load=(1.0, 0.2, 0.6, 0.2), mass=(0.3, 0.9, 0.5, 0.1), gate=(1, 2, 3, -4))
    assert loads.most_used(3, "load").kept == (0, 1, 2)  # of two alike the one with more mass
    assert loads.most_used(2, "gate").kept == (1, 2)
    assert loads.most_used(2, "load").gates == (1.0, 3.0)


def test_layer_of_a_models_own_inputs_is_refused_unless_it_may_stay_whole(tmp_path: Path):
    package = write_projected(tmp_path / "package")
    with pytest.raises(ConfigError, match=r"blocks\.0\.attn: 'x' is an input of the model"):
        prune(package.root, tmp_path / "pruned", keep=2)
    report = prune(package.root, tmp_path / "pruned", keep=2, allow_whole=True)
    assert not report.layers[0].fixed.is_cut
    (layer,) = OnnxPackage.open(tmp_path / "pruned").manifest.layers
    assert (layer.num_heads, len(layer.closed_heads), layer.active_share) == (4, 2, 0.5)


def test_keys_that_the_model_returns_stay_whole(tmp_path: Path):
    package = write_grouped(tmp_path / "package", returns_keys=True)
    report = prune(package.root, tmp_path / "pruned", keep=1)
    assert "'k' stays whole, and kept heads are copied" in report.layers[0].notes[0]
    pruned = OnnxPackage.open(tmp_path / "pruned")
    same = package.vectors[0].outputs["k"] == pruned.vectors[0].outputs["k"]
    assert same.all()


def test_flops_do_not_depend_on_how_layers_run_at_some_sizes(tmp_path: Path):
    package = write_projected(tmp_path / "package")
    reports = [prune(package.root, tmp_path / "pruned", keep=2, allow_whole=True)]
    moh_deploy.tune(package.root, choose={"all[seq<=3]": "projected", "all": "dense"})
    reports.append(prune(package.root, tmp_path / "of ranges", keep=2, allow_whole=True))
    sizes = [(report.before, report.after) for report in reports]
    assert sizes[0] == sizes[1]


def test_layers_that_share_a_router_get_gates_of_their_own(tmp_path: Path):
    package = write_grouped(tmp_path / "package", twice=True)
    report = prune(package.root, tmp_path / "pruned", keep=3)
    assert report.parity.equal
    pruned = OnnxPackage.open(tmp_path / "pruned")
    assert len({layer.gates for layer in pruned.manifest.layers}) == 2
    assert "MoHRouter" not in {node.op_type for node in onnx.load(pruned.model_path).graph.node}


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (0, "keep is '0', expected a number of heads such as 12, or a share such as 75%"),
        ("some", "keep is 'some', expected"),
        ("120%", "keep is '120%', expected"),
        (7, f"keep is 7, but layer '{PATH}' has 6 heads"),
    ],
)
def test_numbers_that_cannot_be_kept_are_refused(
    package: OnnxPackage, tmp_path: Path, keep: int | str, message: str
):
    with pytest.raises(ConfigError, match=message):
        prune(package.root, tmp_path / "pruned", keep=keep)
    assert not (tmp_path / "pruned").exists()


def test_share_is_of_each_layers_heads(package: OnnxPackage, tmp_path: Path):
    report = prune(package.root, tmp_path / "pruned", keep="50%")
    assert len(report.layers[0].fixed.kept) == 3


def test_package_that_is_not_its_original_is_no_start(package: OnnxPackage, tmp_path: Path):
    lowered = tmp_path / "half"
    moh_deploy.precision(package.root, to="float16", output=lowered)
    with pytest.raises(ConfigError, match="expected a package in float32"):
        prune(lowered, tmp_path / "pruned", keep=2)


def test_layers_that_feed_each_other_are_refused_together(tmp_path: Path):
    package = write_two_layers(tmp_path / "package")
    with pytest.raises(ConfigError, match="2 of 2 layers cannot be pruned"):
        prune(package.root, tmp_path / "pruned", keep=2)


def _wrong_head(monkeypatch: pytest.MonkeyPatch) -> None:
    right = layer_edit.packed

    def shifted(value: object, heads: int, kept: Entries) -> tuple[int, Entries]:
        return right(value, heads, tuple(sorted((head + 1) % heads for head in kept)))  # type: ignore[arg-type]

    monkeypatch.setattr(layer_edit, "packed", shifted)


def _forgotten_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    right = layer_edit.LayerEdit._gates
    monkeypatch.setattr(
        layer_edit.LayerEdit,
        "_gates",
        lambda self, query, gates: right(self, query, [1.0] * len(gates)),
    )


def _mixed_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    right = KeyHeads._picked
    monkeypatch.setattr(
        KeyHeads, "_picked", lambda self, value, times: right(self, value, times[::-1])
    )


@pytest.mark.parametrize("plant", [_wrong_head, _forgotten_gates, _mixed_groups])
def test_planted_fault_is_found_and_nothing_is_written(
    package: OnnxPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plant: object
):
    # Heads of groups that are left with other sizes.
    monkeypatch.setattr(
        HeadLoads,
        "most_used",
        lambda self, keep, by: edit.FixedHeads((0, 1, 2), tuple(self.gate[:3])),
    )
    prune(package.root, tmp_path / "right", keep=3)
    plant(monkeypatch)  # type: ignore[operator]
    with pytest.raises(ValidationError, match="the pruned package is"):
        prune(package.root, tmp_path / "pruned", keep=3)
    assert not (tmp_path / "pruned").exists()


# Exported models of every form are pruned, and go on through the other commands.


@pytest.fixture(scope="module", params=["digits", "dit", "llama", "vit"])
def of_form(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(FORMS[request.param], tmp_path_factory.mktemp(request.param))


@nightly
@pytest.mark.parametrize("keep", ["30%", "60%", "100%"])
def test_pruned_model_is_the_whole_one_with_gates_fed(of_form: Path, tmp_path: Path, keep: str):
    report = moh_deploy.prune(of_form, tmp_path / "pruned", keep=keep)
    assert report.parity.equal
    assert all(layer.fixed.is_cut for layer in report.layers)
    # With all heads only routers go, and those of the LLaMA form have no weights.
    if keep != "100%":
        assert report.after.parameters < report.before.parameters
    pruned = OnnxPackage.open(tmp_path / "pruned")
    assert not any(name.endswith("MoHRouter") for name in pruned.manifest.ops)


@nightly
def test_pruned_package_goes_on_through_other_commands(of_form: Path, tmp_path: Path):
    moh_deploy.prune(of_form, tmp_path / "pruned", keep="60%")
    moh_deploy.verify(tmp_path / "pruned", kernels="off").raise_if_unequal()
    moh_deploy.inline(tmp_path / "pruned", output=tmp_path / "pruned.onnx")
    moh_deploy.precision(tmp_path / "pruned", to="float16", output=tmp_path / "half")
    assert OnnxPackage.open(tmp_path / "half").manifest.made is not None


@nightly
def test_every_head_may_be_open(of_form: Path, tmp_path: Path):
    made = with_top_k(of_form, tmp_path / "made", top_k=None)
    assert all(layer.active_share == 1.0 for layer in made.manifest.layers)


# Layers whose projections are convolutions, over one pixel or a few, are pruned as others are.


class ConvolutionMoH(nn.Module):
    """Attention over the pixels of an image, two heads of four for each.

    Args:
        kernel: Of the convolution of its own that each channel of keys and values goes through.
    """

    def __init__(self, width: int = 16, heads: int = 4, kernel: int = 1) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Conv2d(width, width, 1)
        self.pair = nn.Conv2d(width, 2 * width, 1, bias=False)
        self.around = nn.Conv2d(2 * width, 2 * width, kernel, padding=kernel // 2, groups=2 * width)
        self.router = nn.Linear(width, heads, bias=False)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, image: Tensor) -> Tensor:
        batch, width, rows, columns = image.shape
        split = (batch, self.heads, width // self.heads, rows * columns)
        key, value = self.around(self.pair(image)).chunk(2, dim=1)
        q, k, v = (item.reshape(split).mT for item in (self.query(image), key, value))
        logits = self.router(image.flatten(2).mT)
        chosen = torch.zeros_like(logits).scatter(-1, logits.topk(2, dim=-1).indices, 1.0)
        gates = logits.softmax(-1) * chosen  # [B, S, H]
        heads = nn.functional.scaled_dot_product_attention(q, k, v) * gates.mT.unsqueeze(-1)
        return self.out(heads.mT.reshape(batch, width, rows, columns))


@nightly
@pytest.mark.parametrize("kernel", [1, 3])
def test_channels_of_heads_that_go_are_cut(kernel: int, tmp_path: Path):
    torch.manual_seed(0)
    model = ConvolutionMoH(kernel=kernel).eval()
    spec = "image:[batch=2,16,5,7]:float32"
    export_package(ExportOptions(model, tmp_path / "package", input_specs=(spec,)))
    (layer,) = OnnxPackage.open(tmp_path / "package").manifest.layers
    assert layer.replaced, layer.reason
    report = moh_deploy.prune(tmp_path / "package", tmp_path / "pruned", keep=2)
    assert report.parity.equal
    assert report.layers[0].fixed.is_cut
    # Half of all channels of the four convolutions, and the router.
    whole = sum(parameter.numel() for parameter in model.parameters())
    out = model.out.bias
    left = (whole - model.router.weight.numel() - out.numel()) / 2 + out.numel()
    assert report.after.parameters == pytest.approx(left, abs=4)
    moh_deploy.verify(tmp_path / "pruned").raise_if_unequal()
    assert np.all(np.array(report.layers[0].fixed.gates) > 0)
