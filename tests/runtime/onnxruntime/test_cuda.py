"""Sessions on the CUDA provider, without a GPU: ONNX Runtime's own CPU stands in for it."""

import re
import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from moh_deploy import native
from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.graph.choose_layers import write_choices
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.models import kernels_of, runtime_for, runtime_name_of
from moh_deploy.runtime.onnxruntime import cuda
from moh_deploy.runtime.onnxruntime.runner import OrtRunner
from moh_deploy.runtime.open_runner import find_deployed, open_runner
from moh_deploy.serving.served_model import open_served
from moh_deploy.serving.settings import ServingSettings
from moh_deploy.serving.triton.bundle import write_bundle
from moh_deploy.system.nvidia_driver import Driver, Gpu
from tests.handmade_package import LAYER, vectors, write_package
from tests.kernel_library import required_library
from tests.runtime.onnxruntime.test_runner import FOLLOWING, STEPS, empty, opened

ON_CUDA = Variant(runtime="onnxruntime-cuda")
PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")


class Binding(ort.IOBinding):
    """A binding that takes memory of the CPU for that of the GPU, and notes what was asked for."""

    asked: list[tuple[str, str]] = []  # noqa: RUF012  (of all bindings of a test)

    def bind_output(self, name: str, device_type: str = "cpu") -> None:
        self.asked.append((name, device_type))
        super().bind_output(name)


class RunOptions(ort.RunOptions):
    """Options that leave out the GPU's memory, which the CPU has none of."""

    asked: dict[str, str] = {}  # noqa: RUF012  (of all runs of a test)

    def add_run_config_entry(self, key: str, value: str) -> None:
        self.asked[key] = value
        super().add_run_config_entry(key, value.removesuffix(";gpu:0"))


class Session(ort.InferenceSession):
    """A session on the CPU that says that it is on CUDA."""

    started = PROVIDERS
    refuses: str | None = None
    given: dict[str, Any] = {}  # noqa: RUF012  (of the last session of a test)

    def __init__(
        self, model: object, options: ort.SessionOptions, providers: Sequence[Any], **more: Any
    ) -> None:
        Session.given = {"providers": providers, **more}
        if self.refuses is not None:
            raise RuntimeError(self.refuses)
        super().__init__(model, options, providers=["CPUExecutionProvider"])

    def get_providers(self) -> list[str]:
        return list(self.started)

    def io_binding(self) -> Binding:
        return Binding(self)


@pytest.fixture
def package(tmp_path: Path) -> OnnxPackage:
    return write_package(tmp_path / "package")


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheel with CUDA."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: list(PROVIDERS))
    monkeypatch.setattr(ort, "InferenceSession", Session)
    monkeypatch.setattr(Session, "started", PROVIDERS)
    monkeypatch.setattr(ort, "RunOptions", RunOptions)
    monkeypatch.setattr(Binding, "asked", [])
    monkeypatch.setattr(RunOptions, "asked", {})


@pytest.fixture
def gpu(provider: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheel with CUDA, and a GPU."""
    driver = Driver("13.0", (Gpu("NVIDIA L4", 89, 24 << 30),))
    monkeypatch.setattr(cuda, "read_driver", lambda: driver)


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(native, "FOLDER", tmp_path)


def test_wheel_for_the_cpu_is_refused(package: OnnxPackage):
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("ONNX Runtime has CUDA here")
    wrong = f"ONNX Runtime {ort.__version__} has the providers .*, expected CUDAExecutionProvider"
    # Before ONNX Runtime is asked, which would warn and compute on the CPU.
    with pytest.raises(BackendError, match=wrong) as refusal:
        open_runner(package, ON_CUDA)
    assert native.INSTALL_ORT_GPU in str(refusal.value.hint)
    assert refusal.value.exit_code == 6
    with pytest.raises(BackendError, match=wrong):
        runtime_name_of("onnxruntime-cuda")
    with pytest.raises(BackendError, match="was tuned for onnxruntime-cuda, which is not here"):
        runtime_for(None, "onnxruntime-cuda")


@pytest.mark.usefixtures("provider")
def test_machine_without_a_gpu_is_refused(package: OnnxPackage, monkeypatch: pytest.MonkeyPatch):
    def read_driver() -> Driver:
        raise BackendError("no NVIDIA driver: libcuda.so.1 was not found")

    monkeypatch.setattr(cuda, "read_driver", read_driver)
    wrong = re.escape("needs an NVIDIA GPU: no NVIDIA driver: libcuda.so.1 was not found.")
    for opens in (lambda: open_runner(package, ON_CUDA), lambda: kernels_of(ON_CUDA, "float32")):
        with pytest.raises(BackendError, match=wrong) as refusal:
            opens()
        assert "`nvidia-smi` lists it" in str(refusal.value.hint)


# Our library is registered for a provider that is not there: ONNX Runtime 1.31.1 says the second.
@pytest.mark.parametrize("says", [None, "Could not find an implementation for MoHAttention(1)"])
@pytest.mark.usefixtures("gpu", "no_library")
def test_session_that_fell_back_to_the_cpu_is_refused(
    package: OnnxPackage, monkeypatch: pytest.MonkeyPatch, says: str | None
):
    monkeypatch.setattr(Session, "started", ("CPUExecutionProvider",))
    monkeypatch.setattr(Session, "refuses", says)
    monkeypatch.setattr(cuda, "_why_not_loaded", lambda: "libcublasLt.so.13: cannot open")
    wrong = r"cannot load its CUDA provider: libcublasLt\.so\.13: cannot open\."
    with pytest.raises(BackendError, match=wrong) as refusal:
        open_runner(package, ON_CUDA)
    assert "pip install 'onnxruntime-gpu[cuda,cudnn]'" in str(refusal.value.hint)


@pytest.mark.usefixtures("gpu", "no_library")
def test_error_of_a_provider_that_loads_is_its_own(
    package: OnnxPackage, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Session, "refuses", "CUDA failure 36: API call is not supported")
    monkeypatch.setattr(cuda, "_why_not_loaded", lambda: None)
    with pytest.raises(BackendError, match="into its CUDA provider: CUDA failure 36: API call"):
        open_runner(package, ON_CUDA)


@pytest.mark.usefixtures("gpu", "no_library")
def test_without_a_library_bodies_run_and_kernels_cannot_be_required(package: OnnxPackage):
    found = open_runner(package, ON_CUDA).describe()
    assert found.layer_impl == {str(LAYER.node): "function"}
    assert "has no libmoh_ort_cuda.so; `make cuda`" in found.kernels.warning
    with pytest.raises(BackendError, match=r"required, but .* has no libmoh_ort_cuda\.so") as error:
        open_runner(package, replace(ON_CUDA, kernels="require"))
    assert "moh-deploy help cuda" in str(error.value.hint)


@pytest.mark.usefixtures("gpu")
def test_library_of_another_kind_is_refused(
    package: OnnxPackage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    shutil.copyfile(required_library(), tmp_path / native.ORT_CUDA_NAME)
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    wrong = r"libmoh_ort_cuda\.so is no kernel library .*: it has no function moh_ort_cuda_version"
    with pytest.raises(BackendError, match=wrong):
        open_runner(package, ON_CUDA)


@pytest.mark.usefixtures("gpu", "no_library")
def test_session_computes_on_cuda_in_full_float32_and_without_falling_back(package: OnnxPackage):
    runner = open_runner(package, ON_CUDA)
    assert Session.given["providers"] == [("CUDAExecutionProvider", {"use_tf32": "0"})]
    assert Session.given["enable_fallback"] == 0
    found = runner.describe()
    assert found.where() == f"ONNX Runtime {ort.__version__} (CUDA) on NVIDIA L4"
    run = vectors(batch=3, seq=37, seed=4)
    np.testing.assert_allclose(runner.run(run.inputs)["y"], run.outputs["y"], atol=1e-5)


@pytest.mark.usefixtures("gpu", "no_library")
def test_outputs_of_a_timed_call_stay_on_the_gpu(package: OnnxPackage):
    call = open_runner(package, ON_CUDA).bound(vectors().inputs)
    assert Binding.asked == [("y", "cuda")]
    call()


@pytest.mark.usefixtures("gpu", "no_library")
def test_cache_in_place_is_taken_from_each_result_on_the_gpu(tmp_path: Path):
    # The session reads a copy of the caller's memory: bound once, it would stay as it was.
    on_the_cpu = opened(tmp_path, in_place=True)
    runner = open_runner(tmp_path / "model.onnx", ON_CUDA)
    assert isinstance(runner, OrtRunner)
    assert (runner.buffers, on_the_cpu.buffers) == ({}, {"present": "past"})
    step, plain = (each.steps(empty(in_place=True), FOLLOWING) for each in (runner, on_the_cpu))
    for inputs in STEPS:
        np.testing.assert_array_equal(step(inputs)["y"], plain(inputs)["y"])


@pytest.mark.usefixtures("gpu", "no_library")
def test_memory_of_the_gpu_is_given_back_where_threads_do_not_spin(package: OnnxPackage):
    open_runner(package, replace(ON_CUDA, spins=False)).run(vectors().inputs)
    assert RunOptions.asked == {"memory.enable_memory_arena_shrinkage": "cpu:0;gpu:0"}


@pytest.mark.usefixtures("gpu", "no_library")
def test_server_runs_what_it_is_told_or_what_the_package_was_tuned_for(
    package: OnnxPackage, tmp_path: Path
):
    settings = ServingSettings("m", threads=1, runtime="onnxruntime-cuda")
    with closing(open_served(find_deployed(package.root), settings)) as served:
        assert served.describe().device == "NVIDIA L4"
    tuned = write_choices(
        package, package.manifest.layers, tmp_path / "tuned", runtime="onnxruntime-cuda"
    )
    with closing(open_served(find_deployed(tuned.root), ServingSettings("m", threads=1))) as served:
        assert served.describe().device == "NVIDIA L4"
    with pytest.raises(ConfigError, match="tuned for onnxruntime-cuda, and a bundle brings"):
        write_bundle(find_deployed(tuned.root), tmp_path / "bundle", ServingSettings("m"))
