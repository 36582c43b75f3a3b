"""A package is compared with checkpoints, which PyTorch runs, on inputs of the user's."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import moh_deploy
from moh_deploy.errors import ConfigError, ValidationError
from moh_deploy.frontend.prove import rerun
from moh_deploy.frontend.prove.eager import EagerModel
from moh_deploy.system.npz import Array, write_npz
from moh_deploy.validate.reference.samples import recorded_samples
from tests import small_moh
from tests.cli.run_cli import Cli
from tests.nightly import nightly
from tests.report.shown import as_junit

FACTORY = "tests.api.test_verify_original:build"


def build() -> nn.Sequential:
    """Return a model of two MoH layers, '0' and '1'."""
    return nn.Sequential(small_moh.build(), small_moh.build()).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package, the checkpoint that it was made from, a newer one, and inputs."""
    root, newer = tmp_path_factory.mktemp("original"), build()
    with torch.no_grad():
        newer[0].out.weight.mul_(0.9)
    torch.save(build().state_dict(), root / "model.pt")
    torch.save(newer.state_dict(), root / "newer.pt")
    spec = "x:[batch=2,seq=7,8]:float32"
    moh_deploy.export(
        root / "model.pt", root / "package", factory=FACTORY, code_dirs=["."], input_specs=[spec]
    )
    # The batch of 1 would count as fixed if it were traced with.
    x = np.random.default_rng(5).standard_normal((1, 11, 8)).astype(np.float32)
    write_npz(root / "mine.npz", {"x": x})
    return root


def loaded(path: Path) -> EagerModel:
    return moh_deploy.load_original(path, factory=FACTORY, code_dirs=["."])


def test_routing_is_compared_with_the_checkpoint_on_inputs_of_the_users(folder: Path):
    original = loaded(folder / "model.pt")
    report = moh_deploy.verify(folder / "package", inputs=[folder / "mine.npz"], against=[original])
    report.raise_if_unequal()
    assert report.reference == f"original model {folder / 'model.pt'}"
    assert report.notes == ()
    assert [layer.path for layer in report.layers] == ["0", "1"]
    assert all(layer.agreement == 1.0 for layer in report.layers)
    margins = [layer.smallest_margin for layer in report.layers]
    assert all(margin is not None and margin < 1 for margin in margins)


@nightly
def test_what_is_recorded_again_is_bit_for_bit_what_export_recorded(folder: Path):
    package = moh_deploy.OnnxPackage.open(folder / "package")
    samples = recorded_samples(package.vectors)
    again = loaded(folder / "model.pt").answers(package, samples).vectors
    for found, recorded in zip(again, package.vectors, strict=True):
        assert found.sizes == recorded.sizes
        np.testing.assert_equal(found.outputs, recorded.outputs)
        np.testing.assert_equal(found.gates, recorded.gates)
        np.testing.assert_equal(found.margins, recorded.margins)


@nightly
def test_model_is_traced_once_for_many_batches(folder: Path, monkeypatch: pytest.MonkeyPatch):
    package, original = moh_deploy.OnnxPackage.open(folder / "package"), loaded(folder / "model.pt")
    samples = recorded_samples(package.vectors)
    first = original.answers(package, samples[:1])
    monkeypatch.setattr(rerun, "trace", None)
    again = original.answers(package, samples[:1])
    np.testing.assert_equal(again.vectors[0].gates, first.vectors[0].gates)


def test_stale_weights_are_refused_with_the_layer_and_the_checkpoint(folder: Path, capsys):
    done = Cli(capsys)(
        *("verify", folder / "package", "--inputs", folder / "mine.npz"),
        *("--against", folder / "newer.pt", "--factory", FACTORY, "--code-dir", "."),
    )
    assert done.exit_code == 1
    assert "The package was made from another checkpoint (sha256 " in done.err
    assert "newer.pt" in done.err
    assert (
        "the error is behind the attention of layer '0', and no later than that of layer '1'."
        in done.err
    )


@nightly
def test_exported_program_is_a_reference(folder: Path, tmp_path: Path):
    dims = {"input": {0: torch.export.Dim("batch"), 1: torch.export.Dim("seq")}}
    program = torch.export.export(build(), (torch.zeros(2, 7, 8),), dynamic_shapes=dims)
    torch.export.save(program, tmp_path / "model.pt2")
    original = moh_deploy.load_original(tmp_path / "model.pt2")
    report = moh_deploy.verify(folder / "package", against=[original])
    report.raise_if_unequal()
    assert report.has_routing
    assert "was made from another checkpoint" in report.notes[0]


class TwoInputs(nn.Module):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return x * mask


@nightly
def test_layers_of_other_names_are_compared_in_their_order_and_that_is_said(folder: Path):
    wrapped = moh_deploy.load_original(nn.Sequential(build()).eval())
    report = moh_deploy.verify(folder / "package", against=[wrapped])
    assert report.equal
    assert "Layers are compared in their order: '0.0' as '0', '0.1' as '1'." in report.notes


def test_model_that_takes_other_inputs_is_refused(folder: Path):
    with pytest.raises(ConfigError, match="TwoInputs in memory: it fails on the package's inputs"):
        moh_deploy.verify(folder / "package", against=[moh_deploy.load_original(TwoInputs())])


@nightly
def test_model_of_another_architecture_is_refused(folder: Path):
    other = moh_deploy.load_original(small_moh.build())
    with pytest.raises(ConfigError, match=r"has 1 MoH layers \(model\), the package 2\."):
        moh_deploy.verify(folder / "package", against=[other])


def test_model_of_another_dtype_is_refused_with_what_to_do(folder: Path):
    half = moh_deploy.load_original(build(), dtype="float16")
    with pytest.raises(ConfigError, match="fails on the package's inputs") as refused:
        moh_deploy.verify(folder / "package", against=[half])
    assert "--dtype brings it there" in str(refused.value.hint)


class TracedForMany(nn.Sequential):
    """The trace reads the twelfth token; the module itself does not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_exporting():
            x = x + 0 * x.reshape(-1, x.shape[2])[11]
        y: torch.Tensor = super().forward(x)
        return y


def few_and_many(folder: Path, tmp_path: Path) -> list[Path]:
    many = np.random.default_rng(6).standard_normal((3, 9, 8)).astype(np.float32)
    write_npz(tmp_path / "many.npz", {"x": many})
    return [folder / "mine.npz", tmp_path / "many.npz"]


@nightly
def test_where_the_trace_does_not_run_outputs_alone_are_compared(folder: Path, tmp_path: Path):
    original = moh_deploy.load_original(TracedForMany(*build()))
    inputs = few_and_many(folder, tmp_path)
    report = moh_deploy.verify(folder / "package", inputs=inputs, against=[original])
    report.raise_if_unequal()
    whole, alone = report.comparisons
    assert {layer.vectors for layer in whole.layers} == {"many.npz (batch=3, seq=9)"}
    assert (whole.vector_sets, whole.has_routing, whole.routing_agreement) == (1, True, 1.0)
    assert not any("does not run" in note for note in whole.notes)
    assert [output.vectors for output in alone.outputs] == ["mine.npz (batch=1, seq=11)"]
    assert (alone.vector_sets, alone.has_routing, alone.layers) == (1, False, ())
    assert alone.reference == "original model TracedForMany in memory, outputs alone"
    assert "does not run at batch=1, seq=11, where the original model does (" in alone.notes[-1]
    suite = as_junit(report, "package").partition(", outputs alone")[2]
    assert '<skipped message="The reference holds no gates." />' in suite


@nightly
def test_outputs_alone_refuse_stale_weights(folder: Path):
    newer = TracedForMany(*build())
    with torch.no_grad():
        newer[0].out.weight.mul_(0.9)
    against = [moh_deploy.load_original(newer)]
    report = moh_deploy.verify(folder / "package", inputs=[folder / "mine.npz"], against=against)
    assert not report.has_routing
    with pytest.raises(ValidationError, match=r"^not equal to the reference: output '") as refused:
        report.raise_if_unequal()
    assert "does not run at batch=1, seq=11" in refused.value.message


@nightly
def test_labelled_batches_without_gates_are_scored_in_their_order(folder: Path, tmp_path: Path):
    """Batches of 2, 1, and 2 samples: the trace does not run on the second."""
    draw = np.random.default_rng(7)
    for name, samples in (("a.npz", 3), ("b.npz", 2)):
        x = draw.standard_normal((samples, 7, 8)).astype(np.float32)
        write_npz(tmp_path / name, {"x": x})
    original = moh_deploy.load_original(TracedForMany(*build()))
    asked = {"labels": np.arange(5), "metric": first_number, "better": "higher", "batch_size": 2}
    report = moh_deploy.verify(folder / "package", inputs=[tmp_path], against=[original], **asked)
    assert [part.has_routing for part in report.comparisons] == [True, False]
    assert [part.vector_sets for part in report.comparisons] == [2, 1]
    (metric,) = report.accuracy
    assert metric.samples == 5
    assert abs(metric.difference) < 1e-5


def first_number(outputs: dict[str, Array], labels: Array) -> Array:
    (found,) = outputs.values()
    return found[:, 0, 0] * (1 + labels)
