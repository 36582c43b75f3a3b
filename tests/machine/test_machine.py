from dataclasses import replace
from pathlib import Path

import pytest

from moh_deploy.machine.ask import Failed
from moh_deploy.machine.cpu import CpuFacts, CpuRun, OpenVinoFacts, RuntimeFacts
from moh_deploy.machine.gpu import DeviceCode, GpuFacts, LibraryFacts
from moh_deploy.machine.machine import Ability, Importable, Machine, abilities
from moh_deploy.machine.packages import PackageFacts, Packages
from moh_deploy.machine.tensorrt import CreatorRegistry, EngineFacts, TensorRTFacts
from moh_deploy.machine.tools import ToolFacts, Tools
from moh_deploy.system.nvidia_driver import Gpu

EXPORT, CPU, CPU_KERNELS = "export a model", "run on the CPU", "run on the CPU, by kernels"
OPENVINO, BUILD_ORT = "run on the CPU, in OpenVINO by kernels", "build libmoh_ort_cuda.so"
ORT_CUDA, BUILD_PLUGIN = "run CUDA kernels in ONNX Runtime", "build libmoh_plugin.so"
RTX, RTX_KERNELS = "build TensorRT-RTX engines", "build TensorRT-RTX engines, with kernels"
RTX_RUN, TRT = "run TensorRT-RTX engines", "build and run TensorRT engines"
TRT_KERNELS, RUNNER = f"{TRT}, with kernels", "moh-deploy run, verify: engines"
NAMES = [EXPORT, CPU, CPU_KERNELS, OPENVINO, BUILD_ORT, ORT_CUDA, BUILD_PLUGIN, RTX, RTX_KERNELS]
NAMES += [RTX_RUN, TRT, TRT_KERNELS, RUNNER, "use all add-ons"]

_BROKEN = Failed("it is broken", "mend it")
_CODE = DeviceCode((80, 86, 89, 90, 120), (120,))


def _tensorrt(name: str, version: str) -> TensorRTFacts:
    return TensorRTFacts(name, CreatorRegistry(version, ()), CreatorRegistry(version, ()))


_ENGINES = EngineFacts(
    plugin=LibraryFacts(Path("libmoh_plugin.so"), _CODE),
    tensorrt=(_tensorrt("TensorRT", "10.9.0"), _tensorrt("TensorRT-RTX", "1.7.1")),
)
_POLYGRAPHY = PackageFacts("polygraphy", "0.53.6", "<0.60,>=0.53", False, None, None)
_TORCH = PackageFacts("torch", "2.13.0", ">=2.9", False, None, None)
FULL = Machine(
    moh_deploy="0.1.0",
    python="3.12.1",
    platform="Linux x86_64",
    packages=Packages(True, (_TORCH, _POLYGRAPHY)),
    export=Importable(),
    cpu=CpuFacts(
        RuntimeFacts("1.30.0", ("CUDAExecutionProvider", "CPUExecutionProvider")),
        CpuRun(()),
        Path("libmoh_ort_cpu.so"),
        CpuRun(("avx2", "baseline")),
    ),
    openvino=OpenVinoFacts("2026.4.1", Path("libmoh_openvino.so"), CpuRun(("avx2",))),
    gpu=GpuFacts("590.1", "13.1", (Gpu("NVIDIA L4", 89, 24 << 30),)),
    tools=Tools(
        ToolFacts("nvcc", Path("nvcc"), "12.8"),
        ToolFacts("cmake", Path("cmake"), "3.31.6"),
        ToolFacts("c++", Path("c++"), "14.2.0"),
        {"TensorRT": Path("include"), "ONNX Runtime": Path("include")},
    ),
    ort_cuda=LibraryFacts(Path("libmoh_ort_cuda.so"), _CODE),
    cuda_run=CpuRun(()),
    add_ons=(_ENGINES,),
)


def _cannot(machine: Machine) -> dict[str, Ability]:
    return {ability.name: ability for ability in abilities(machine) if not ability.can}


def _with_gpu(compute_capability: int) -> Machine:
    return replace(FULL, gpu=GpuFacts(None, "13.1", (Gpu("NVIDIA X", compute_capability, 1),)))


def _with_tensorrt(**versions: str) -> Machine:
    names = {"trt": "TensorRT", "rtx": "TensorRT-RTX"}
    full = {"trt": "10.9.0", "rtx": "1.7.1"} | versions
    return _with_engines(tensorrt=tuple(_tensorrt(names[k], v) for k, v in full.items()))


def _with_engines(**changes: object) -> Machine:
    return replace(FULL, add_ons=(replace(_ENGINES, **changes),))


def _with_tools(**changes: object) -> Machine:
    return replace(FULL, tools=replace(FULL.tools, **changes))


def test_a_machine_with_everything_can_do_everything():
    found = abilities(FULL)
    assert [item.name for item in found] == NAMES
    assert all(item.can and item.how for item in found)
    assert [item.name for item in found if item.essential] == [EXPORT, CPU]
    assert {item.name: item.how for item in found}[CPU_KERNELS] == "avx2"


def test_export_is_essential_only_where_pytorch_is_installed():
    found = abilities(replace(_with_packages(_POLYGRAPHY), export=_BROKEN))
    assert [item.name for item in found if item.essential] == [CPU]
    assert not next(item for item in found if item.name == EXPORT).can


def _with_cpu(**changes: object) -> Machine:
    return replace(FULL, cpu=replace(FULL.cpu, **changes))


def _with_packages(*found: PackageFacts) -> Machine:
    return replace(FULL, packages=Packages(True, found))


_NO_ONNX = PackageFacts("onnx", None, ">=1.21", True, "onnx is not installed", "pip install it")
_OLD_TORCH = replace(_TORCH, problem="torch is 2.1", fix="pip install it")
_YOUNG = replace(_POLYGRAPHY, problem="it is 0.49")
_ONLY_CPU = _with_cpu(runtime=RuntimeFacts("1.30.0", ("CPU",)))
_NO_EXTENSION = replace(FULL, openvino=replace(FULL.openvino, kernels=_BROKEN))
_OLD_NVCC = _with_tools(nvcc=ToolFacts("nvcc", Path("nvcc"), "12.4"))
_HEADERS = FULL.tools.headers
_LACKS = {
    "onnx": (_with_packages(_NO_ONNX, _POLYGRAPHY), {EXPORT}),
    "young torch": (_with_packages(_OLD_TORCH, _POLYGRAPHY), {EXPORT}),
    "polygraphy": (_with_packages(), {RUNNER}),
    "young polygraphy": (_with_packages(_YOUNG), {RUNNER}),
    "importable export": (replace(FULL, export=_BROKEN), {EXPORT}),
    "function bodies": (_with_cpu(functions=_BROKEN), {CPU, ORT_CUDA}),
    "kernels": (_with_cpu(kernels=_BROKEN), {CPU_KERNELS}),
    "OpenVINO's extension": (_NO_EXTENSION, {OPENVINO}),
    "CUDA provider": (_ONLY_CPU, {ORT_CUDA}),
    "GPU": (replace(FULL, gpu=_BROKEN), {RTX_RUN, TRT, TRT_KERNELS, RUNNER, ORT_CUDA}),
    "GPU that RTX takes": (_with_gpu(90), {RTX_RUN}),
    "GPU with kernels": (_with_gpu(75), {TRT_KERNELS, ORT_CUDA}),
    "plugin": (_with_engines(plugin=_BROKEN), {RTX_KERNELS, TRT_KERNELS}),
    "library for ONNX Runtime": (replace(FULL, ort_cuda=_BROKEN), {ORT_CUDA}),
    "cuBLAS": (replace(FULL, cuda_run=_BROKEN), {ORT_CUDA}),
    "young TensorRT": (_with_tensorrt(trt="10.6.0"), {TRT, TRT_KERNELS}),
    "young RTX": (_with_tensorrt(rtx="1.0.3"), {RTX, RTX_KERNELS, RTX_RUN}),
    "young nvcc": (_OLD_NVCC, {BUILD_PLUGIN, BUILD_ORT}),
    "cmake": (_with_tools(cmake=ToolFacts("cmake", None, None)), {BUILD_PLUGIN, BUILD_ORT}),
    "TensorRT's headers": (
        _with_tools(headers={**_HEADERS, "TensorRT": None}),
        {BUILD_PLUGIN},
    ),
    "ONNX Runtime's headers": (
        _with_tools(headers={**_HEADERS, "ONNX Runtime": None}),
        {BUILD_ORT},
    ),
}


@pytest.mark.parametrize("lack", _LACKS)
def test_what_is_missing_takes_away_what_needs_it(lack: str):
    machine, names = _LACKS[lack]
    lost = _cannot(machine)
    assert set(lost) == names
    for value in lost.values():
        assert value.how is None
        assert all(gap.why and gap.fix for gap in value.gaps)


def test_versions_are_compared_as_numbers():
    assert not _cannot(_with_tensorrt(trt="11.4.0.106", rtx="1.10.0"))
    assert TRT in _cannot(_with_tensorrt(trt="9.12.0"))


def test_reasons_have_the_value_and_the_limit():
    lost = _cannot(_with_tensorrt(trt="10.6.0"))
    assert lost[TRT].gaps[0].why == "TensorRT is 10.6.0, expected 10.7 or later"
    lost = _cannot(_with_gpu(75))
    assert "libmoh_plugin.so has no code for NVIDIA X (7.5)" in lost[TRT_KERNELS].gaps[0].why
    assert "no CUDAExecutionProvider" in _cannot(_LACKS["CUDA provider"][0])[ORT_CUDA].gaps[0].why


def test_a_registry_that_refuses_the_plugin_is_named():
    facts = replace(_ENGINES.tensorrt[0], with_plugin=Failed("it crashed"))
    lost = _cannot(_with_engines(tensorrt=(facts, _ENGINES.tensorrt[1])))
    assert set(lost) == {TRT_KERNELS}
    assert lost[TRT_KERNELS].gaps[0].why == "TensorRT with libmoh_plugin.so: it crashed"


@pytest.mark.parametrize(("cuda", "lacks"), [("12.4", True), ("13.0", False)])
def test_a_driver_of_before_the_plugins_cuda_runs_no_kernels(cuda: str, lacks: bool):
    machine = replace(
        _with_engines(plugin=replace(_ENGINES.plugin, cuda=13)),
        gpu=GpuFacts("550.1", cuda, (Gpu("NVIDIA L4", 89, 24 << 30),)),
    )
    found = _cannot(machine)
    assert len(found) == lacks
    for value in found.values():
        (gap,) = value.gaps
        assert gap.why == "the driver takes CUDA 12.4, and libmoh_plugin.so was compiled with 13"
        assert "580 or later takes CUDA 13" in gap.fix
