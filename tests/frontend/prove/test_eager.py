"""Original models beside a package that was written by hand: any model that takes its inputs."""

import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from torch import nn

import moh_deploy
from moh_deploy.errors import BackendError, ConfigError, ExportError
from moh_deploy.frontend.fx.arrays import to_numpy, to_torch
from moh_deploy.package import OnnxPackage
from moh_deploy.perf.bench.candidate import FreshTask, fresh_run
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.runtime.original import OriginalModel
from moh_deploy.system.npz import Array, write_npz
from tests.frontend.traced import plain_trace
from tests.handmade_package import vectors, write_package
from tests.nightly import nightly

X = vectors().inputs["x"]


class Net(nn.Module):
    """Takes x [B, S, 8]; prints, as user code does."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(8, 2)

    def forward(self, *tokens):
        print("running")
        (x,) = tokens
        return {"y": self.last(x), "sum": x.sum()}


class WritesIntoItsInput(nn.Module):
    def forward(self, x):
        return x.add_(1)


class Branches(nn.Module):
    def forward(self, x):
        return x + 1 if x.sum() > 0 else x


def expected(net: Net) -> list[Array]:
    with torch.no_grad():
        return [value.numpy() for value in net(torch.from_numpy(X)).values()]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> OnnxPackage:
    return write_package(tmp_path_factory.mktemp("eager") / "package")


@pytest.fixture
def checkpoint(tmp_path: Path, code_dir: Path) -> Path:
    """A state dict of a model that takes x [B, 3]."""
    sys.path.insert(0, str(code_dir))
    from user_net import Net as UserNet

    torch.save(UserNet().state_dict(), tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


def test_original_runs_on_arrays():
    net = Net().eval()
    original = moh_deploy.load_original(net)
    for got, wanted in zip(original.run([X]), expected(net), strict=True):
        np.testing.assert_array_equal(got, wanted)
    original.bound([X])()
    assert original.sha256 is None
    assert original.loader() is None


def test_program_runs_as_a_module_does():
    net = nn.Linear(8, 2)
    original = moh_deploy.load_original(plain_trace(net, torch.from_numpy(X)))
    np.testing.assert_array_equal(original.run([X])[0], net(torch.from_numpy(X)).detach().numpy())
    original.bound([X])()


def test_what_is_given_to_the_original_stays_as_it_is():
    given = X.copy()
    original = moh_deploy.load_original(WritesIntoItsInput())
    original.run([given])
    original.bound([given])()
    np.testing.assert_array_equal(given, X)


def test_original_is_brought_to_another_dtype():
    original = moh_deploy.load_original(nn.Linear(8, 2), dtype="bfloat16")
    (got,) = original.run([X.astype(ml_dtypes.bfloat16)])
    assert got.dtype == ml_dtypes.bfloat16
    with pytest.raises(BackendError, match=r"fails on the package's inputs \(float32\[2, 3, 8\]\)"):
        original.run([X])


def test_threads_are_as_before_afterwards():
    before = torch.get_num_threads()
    with moh_deploy.load_original(Net()).on_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    with moh_deploy.load_original(Net()).on_threads(None):
        assert torch.get_num_threads() == before
    assert torch.get_num_threads() == before


@nightly
def test_plain_export_computes_the_same_at_other_sizes(package: OnnxPackage, tmp_path: Path):
    net, path = Net().eval(), tmp_path / "plain.onnx"
    moh_deploy.load_original(net).write_onnx(path, package)
    assert {node.domain for node in onnx.load(path).graph.node} == {""}
    session = open_runner(path, Variant(kernels="off"))
    x = np.concatenate([X, X], axis=1)
    assert [value.name for value in session.inputs] == ["x"]  # as the package calls it
    got = session.run({"x": x})
    wanted = net(torch.from_numpy(x))["y"].detach().numpy()
    np.testing.assert_allclose(got[session.outputs[0]], wanted, rtol=1e-5, atol=1e-6)


def test_program_is_exported_as_it_was_traced(package: OnnxPackage, tmp_path: Path):
    program, path = plain_trace(nn.Linear(8, 2), torch.from_numpy(X)), tmp_path / "plain.onnx"
    moh_deploy.load_original(program).write_onnx(path, package)
    runner = open_runner(path, Variant(kernels="off"))
    assert [value.name for value in runner.inputs] == ["x"]


def test_model_that_cannot_be_exported_is_an_error(package: OnnxPackage, tmp_path: Path):
    with pytest.raises(ExportError, match="cannot export the original by itself: "):
        moh_deploy.load_original(Branches()).write_onnx(tmp_path / "plain.onnx", package)


@nightly
def test_process_of_its_own_loads_the_original_and_runs_it(
    package: OnnxPackage, checkpoint: Path, code_dir: Path, tmp_path: Path
):
    write_npz(tmp_path / "in.npz", {"x": np.zeros((2, 3), np.float32)})
    original = moh_deploy.load_original(checkpoint, factory="user_net:build", code_dirs=[code_dir])
    alone = OriginalModel.of(original, package.manifest).alone(Variant(threads=1))
    assert alone is not None
    found = fresh_run(FreshTask(*alone, tmp_path / "in.npz"))
    assert found.load_ms > 0
    assert found.first_run_ms > 0
    assert found.peak_memory_bytes > 2**20


@nightly  # another import of torch: a push sees errors of such a process in test_fresh_run.py
def test_process_of_its_own_says_what_cannot_be_imported(
    package: OnnxPackage, checkpoint: Path, code_dir: Path, tmp_path: Path
):
    write_npz(tmp_path / "in.npz", {"x": np.zeros((2, 3), np.float32)})
    original = moh_deploy.load_original(checkpoint, factory="user_net:build", code_dirs=[code_dir])
    alone = OriginalModel.of(original, package.manifest).alone(Variant(threads=1))
    assert alone is not None
    (code_dir / "user_net.py").unlink()
    with pytest.raises(ConfigError, match="'user_net' cannot be imported"):
        fresh_run(FreshTask(*alone, tmp_path / "in.npz"))


def test_options_of_the_original_are_checked(checkpoint: Path):
    with pytest.raises(ConfigError, match="'user_nut' cannot be imported"):
        moh_deploy.load_original(checkpoint, factory="user_nut:build")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int64", "bool"])
def test_arrays_go_to_torch_and_back(dtype: str):
    array = np.arange(6).reshape(2, 3)[:, ::2].astype(dtype)
    tensor = to_torch(array)
    back = to_numpy(tensor)
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)
    assert to_torch(np.zeros((2, 0), dtype)).shape == (2, 0)
