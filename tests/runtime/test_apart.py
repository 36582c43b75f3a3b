"""A model in a process of its own: what ends that process is said, and the rest is compared."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import moh_deploy
from moh_deploy.config.options import ExportOptions
from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.frontend.export_package import export_package
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.models import RunnerApart
from tests.handmade_package import write_package
from tests.nightly import nightly
from tests.openvino_extension import require_openvino
from tests.runtime.falling import open_falling

X = {"x": np.array([1, 2], np.float32)}
FALLING = Variant(runtime="openvino")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> OnnxPackage:
    return write_package(tmp_path_factory.mktemp("apart") / "package")


def test_results_and_errors_come_back(package: OnnxPackage):
    with RunnerApart(open_falling, package, FALLING.returning(["heads"])) as runner:
        assert runner.outputs == ("y", "heads")
        with pytest.raises(ConfigError, match="x is empty") as refused:
            runner.run({"x": np.zeros(0, np.float32)})
        assert refused.value.hint == "Fill it."
        np.testing.assert_array_equal(runner.run(X)["heads"], [2, 4])
        assert runner.describe().notes == ()
    assert runner._process._process.returncode is not None


@pytest.mark.parametrize("when", [pytest.param("when it opens", marks=nightly), "when it runs"])
def test_inner_values_that_end_the_process_are_left_out_and_gates_stay(
    package: OnnxPackage, when: str
):
    (gates,) = package.gate_names
    with RunnerApart(open_falling, package, FALLING.returning([gates, "heads", when])) as runner:
        assert runner.run(X).keys() == {"y", gates}
        assert runner.outputs == ("y", gates)
        (note,) = runner.describe().notes
    assert "ended its process with SIGSEGV" in note
    assert "Without 2 inner values" in note


@nightly
def test_process_that_ends_all_the_same_is_an_error_with_the_shapes(package: OnnxPackage):
    (layer,) = package.manifest.layers
    gates = replace(layer, gates="gates when it runs")
    falling = replace(package, manifest=replace(package.manifest, layers=(gates,)))
    variant = FALLING.returning(["gates when it runs", "heads"])
    with (
        RunnerApart(open_falling, falling, variant) as runner,
        pytest.raises(BackendError, match=r"Falling 1\.0 ended its process with SIGSEGV .*\[2\]"),
    ):
        runner.run(X)


class WithClassToken(nn.Module):
    """Gated attention with rotary positions behind a class token, which is not rotated.

    OpenVINO 2026.4 ends on it with the result of attention as an output.
    """

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.tokens = nn.Embedding(33, 64)
        self.project = nn.Linear(64, 192)
        self.router = nn.Linear(64, 4, bias=False)
        self.out = nn.Linear(64, 8)
        angle = torch.outer(torch.arange(15.0), 100.0 ** (-torch.arange(8) / 8)).repeat(1, 2)
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        batch, tokens, width = x.shape
        queries, keys, values = self.project(x).view(batch, tokens, 3, self.heads, -1).unbind(2)
        scores = self.rotated(queries) @ self.rotated(keys).transpose(-1, -2) / 4
        mixed = scores.softmax(-1) @ values.transpose(1, 2)
        best, places = self.router(x).softmax(-1).topk(2)
        gates = torch.zeros(batch, tokens, self.heads).scatter(-1, places, best)
        mixed = mixed * gates.transpose(1, 2)[..., None]
        return self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))

    def rotated(self, x: Tensor) -> Tensor:
        first, rest = x.transpose(1, 2).split([1, 15], dim=2)
        half, other = rest.chunk(2, -1)
        turned = rest * self.cos + torch.cat((-other, half), -1) * self.sin
        return torch.cat((first, turned), dim=2)


@nightly
def test_model_on_which_openvino_ends_is_compared_without_what_ends_it(tmp_path: Path):
    require_openvino()
    torch.manual_seed(0)
    options = ExportOptions(
        WithClassToken().eval(), tmp_path / "package", input_specs=("ids:[2,16]:int64",)
    )
    export_package(options)
    report = moh_deploy.verify(tmp_path / "package", runtime="openvino", kernels="off")
    assert report.verdict == "equal"
    assert report.has_routing
    assert "ended its process with SIGSEGV" in report.notes[0]
    assert {layer.attention_error for layer in report.layers} == {None}
    shutil.copytree(tmp_path / "package", tmp_path / "copy")
    beside = moh_deploy.verify(
        tmp_path / "package", runtime="openvino", kernels="off", against=[tmp_path / "copy"]
    )
    assert beside.equal
    assert [f"copy: {report.notes[0]}" in note for note in beside.notes] == [True, False]
