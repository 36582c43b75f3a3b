"""`moh_deploy.Engine`: refusals for real, and running with a fake runtime."""

import ctypes
import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import moh_deploy
from moh_deploy.errors import BackendError, PackageError
from moh_deploy.runtime.tensorrt.engine_dir import ENGINE_MANIFEST_NAME, ENGINE_NAME
from moh_deploy.runtime.tensorrt.messages import BuilderOptions
from tests.cuda.trt import builds
from tests.fakes import Fakes
from tests.nightly import nightly, sampled
from tests.runtime.tensorrt.engines import MANIFEST, python, simulate_gpu, write_engine

needs_polygraphy = pytest.mark.skipif(
    importlib.util.find_spec("polygraphy") is None,
    reason="no Polygraphy: pip install 'moh-deploy[polygraphy]'",
)
_HEAD = """
import json, sys
import numpy as np
from moh_deploy import Engine
from moh_deploy.errors import MoHDeployError

def x(batch, seq):
    return np.random.default_rng(batch).standard_normal((batch, seq, 8)).astype(np.float32)

def attempt(call):
    try:
        call()
    except MoHDeployError as error:
        return [type(error).__name__, error.message, error.hint]

"""
Program = Callable[..., Any]


@pytest.fixture
def program(fakes: Fakes) -> Program:
    """Runs a program on the fake runtime; what it prints last is JSON."""
    simulate_gpu(fakes)

    def run(code: str, *arguments: object) -> Any:
        ran = python(_HEAD + code, *arguments)
        assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
        return json.loads(ran.stdout.splitlines()[-1])

    return run


def test_without_a_gpu_it_is_refused_with_the_next_step(tmp_path: Path):
    """For real: on this machine."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        root = write_engine(tmp_path / "engine")
        with pytest.raises(BackendError, match="cannot run here: no NVIDIA driver") as refused:
            moh_deploy.Engine(root)
        assert refused.value.exit_code == 6
        assert "moh-deploy doctor" in str(refused.value.hint)
    else:
        pytest.skip("there is a driver")


def test_a_directory_that_is_none_is_refused(tmp_path: Path):
    with pytest.raises(PackageError, match=r"is not an engine directory: it has no engine\.json"):
        moh_deploy.Engine(tmp_path)


@pytest.mark.parametrize("name", [ENGINE_NAME, "libmoh_plugin.so"])
def test_a_file_that_has_changed_is_refused_before_anything_is_loaded(
    fakes: Fakes, tmp_path: Path, name: str
):
    root = write_engine(tmp_path / "engine", plugin=fakes.library("libmoh_plugin.so", "int moh;"))
    with (root / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(PackageError, match=f"{name} has changed since the engine was built"):
        moh_deploy.Engine(root)
    (root / name).unlink()
    with pytest.raises(PackageError, match=f"{name} is missing, but engine.json lists it"):
        moh_deploy.Engine(root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('"format_version": 1', '"format_version": 2'), "is of format version 2, expected 1"),
        (('"precision": "float32"', '"precision": 3'), "cannot be read"),
    ],
)
def test_a_manifest_of_another_form_is_refused(
    tmp_path: Path, change: tuple[str, str], message: str
):
    path = write_engine(tmp_path / "engine") / ENGINE_MANIFEST_NAME
    text = path.read_text()
    assert change[0] in text
    path.write_text(text.replace(*change))
    with pytest.raises(PackageError, match=message):
        moh_deploy.Engine(path.parent)


@needs_polygraphy
def test_numpy_goes_in_and_comes_out(program: Program, tmp_path: Path):
    found = program(
        """
import tensorrt
with Engine(sys.argv[1]) as engine:
    first = engine.run({"x": x(2, 3)})
    second = engine.run({"x": x(8, 32)})
    third = engine.run({"x": x(1, 1)})
right = [np.array_equal(got["y"], 2 * x(*sizes))
         for got, sizes in ((first, (2, 3)), (second, (8, 32)), (third, (1, 1)))]
after = attempt(lambda: engine.run({"x": x(2, 3)}))
print(json.dumps([right, [c for c in tensorrt.CALLS if "profile" in c], after]))
""",
        write_engine(tmp_path / "engine"),
    )
    assert found[0] == [True, True, True]
    assert found[1] == ["profile 1", "profile 0"]
    assert found[2][1].endswith("engine is closed.")


_RTX = replace(
    MANIFEST,
    backend="tensorrt-rtx",
    versions={"TensorRT-RTX": "10.9.0.34"},
    compute_capabilities=("8.9",),
)


@nightly
@needs_polygraphy
def test_an_engine_of_tensorrt_rtx_runs_by_its_own_module_and_needs_a_process_of_its_own(
    program: Program, fakes: Fakes, tmp_path: Path
):
    simulate_gpu(fakes, module="tensorrt_rtx")
    engine = write_engine(tmp_path / "engine")
    found = program(
        """
with Engine(sys.argv[1]) as rtx:
    y = rtx.run({"x": x(2, 3)})["y"]
    alone = "tensorrt" not in sys.modules
    other = Engine(sys.argv[2])
    refused = attempt(lambda: other.run({"x": x(2, 3)}))
print(json.dumps([np.array_equal(y, 2 * x(2, 3)), alone, refused]))
""",
        write_engine(tmp_path / "rtx", _RTX),
        engine,
    )
    assert found[:2] == [True, True]
    assert "Polygraphy was imported for the other TensorRT" in found[2][1]
    assert found[2][2].startswith("Set POLYGRAPHY_USE_TENSORRT_RTX=0")


@nightly
@needs_polygraphy
def test_a_gpu_without_cuda_s_runtime_is_refused_for_numpy(
    program: Program, fakes: Fakes, tmp_path: Path
):
    (fakes.folder / "libcudart.so").write_text("no library")
    found = program(
        """
with Engine(sys.argv[1]) as engine:
    print(json.dumps(attempt(lambda: engine.run({"x": x(2, 3)}))))
""",
        write_engine(tmp_path / "engine"),
    )
    assert found[0] == "BackendError"
    assert "libcudart.so" in found[1]


@needs_polygraphy
def test_wrong_inputs_are_refused_before_tensorrt_sees_them(program: Program, tmp_path: Path):
    found = program(
        """
import tensorrt
with Engine(sys.argv[1]) as engine:
    attempts = [{"z": x(2, 3)}, {}, {"x": x(2, 3).astype(np.float64)}, {"x": x(2, 3)[0]},
                {"x": x(2, 64)}]
    refused = [attempt(lambda: engine.run(given)) for given in attempts]
print(json.dumps([refused, [c for c in tensorrt.CALLS if "execute" in c]]))
""",
        write_engine(tmp_path / "engine"),
    )
    refused, executed = found
    assert executed == []
    assert {kind for kind, *_ in refused} == {"ConfigError"}
    assert "expected dtype float32" in refused[2][1]
    assert refused[4][1].endswith(
        "was built for batch=1..2..4,seq=1..3..16 and batch=4..8..32,seq=16..32..64;"
        " got batch=2, seq=64."
    )


_TORCH = """
import torch, tensorrt

class OnGpu(torch.Tensor):
    is_cuda = True

def gpu(array):
    memory = torch.zeros(array.size + 64)
    memory = memory[-memory.data_ptr() % 256 // 4 :][: array.size].reshape(array.shape)
    return memory.copy_(torch.from_numpy(array)).as_subclass(OnGpu)

class Stream:
    cuda_stream = 1234
    record_event = staticmethod(lambda: None)
torch.cuda.is_current_stream_capturing = lambda: False
torch.cuda.current_stream = lambda device=None: Stream
"""


@nightly
def test_tensors_of_torch_are_read_and_written_where_they_are(program: Program, tmp_path: Path):
    found = program(
        _TORCH
        + """
addresses = {}
set_address = tensorrt.IExecutionContext.set_tensor_address
def noting(self, name, address):
    addresses[name] = address
    return set_address(self, name, address)
tensorrt.IExecutionContext.set_tensor_address = noting
with Engine(sys.argv[1]) as engine:
    small, large = gpu(x(2, 3)), gpu(x(32, 64))
    y = engine.run({"x": small})["y"]
    same = [addresses["x"] == small.data_ptr(), addresses["y"] == y.data_ptr()]
    right = [np.array_equal(y, 2 * x(2, 3)),
             np.array_equal(engine.run({"x": large})["y"], 2 * x(32, 64))]
    turned = gpu(np.ascontiguousarray(x(2, 3).transpose(1, 0, 2))).transpose(0, 1)
    right.append(np.array_equal(engine.run({"x": turned})["y"], 2 * x(2, 3)))
print(json.dumps([same, right, type(y).__name__, tensorrt.CALLS]))
""",
        write_engine(tmp_path / "engine"),
    )
    assert found[:3] == [[True, True], [True, True, True], "Tensor"]
    execute = "execute on 1234"
    assert found[3] == ["deserialize", execute, "profile 1", execute, "profile 0", execute]


@nightly
def test_tensors_of_torch_elsewhere_are_refused(program: Program, tmp_path: Path):
    found = program(
        _TORCH
        + """
with Engine(sys.argv[1]) as engine:
    attempts = [{"x": torch.from_numpy(x(2, 3))}, {"x": gpu(x(2, 3)).double()},
                {"x": gpu(x(2, 3)), "z": x(2, 3)}]
    print(json.dumps([attempt(lambda: engine.run(given)) for given in attempts]))
""",
        write_engine(tmp_path / "engine"),
    )
    assert found[0][1] == "input 'x' is on cpu, expected a tensor on the first GPU."
    assert "expected dtype float32" in found[1][1]
    assert found[2][1].endswith("expected either: of torch are x.")


@nightly
def test_an_output_whose_shape_depends_on_values_is_refused(program: Program, tmp_path: Path):
    found = program(
        _TORCH
        + """
with Engine(sys.argv[1]) as engine:
    print(json.dumps(attempt(lambda: engine.run({"x": gpu(x(2, 3))}))))
""",
        write_engine(tmp_path / "engine", by_value=True),
    )
    assert "the shape of output 'y' depends on values" in found[1]


_LOADED = """
import tensorrt
found = attempt(lambda: Engine(sys.argv[1]).close())
print(json.dumps([found, tensorrt.CALLS]))
"""


def _without_plugin(root: Path) -> None:
    """Say of an engine with plugins that it has none."""
    path = root / ENGINE_MANIFEST_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), "plugin": None}))


@pytest.mark.parametrize("embedded", [pytest.param(True, marks=nightly), False])
def test_the_plugin_library_is_loaded_before_the_engine_or_lies_in_it(
    program: Program, fakes: Fakes, tmp_path: Path, embedded: bool
):
    plugin = None if embedded else fakes.library("libmoh_plugin.so", "int moh;")
    root = write_engine(tmp_path / "engine", plugin=plugin, embedded=embedded)
    found, calls = program(_LOADED, root)
    assert found is None
    assert calls == [*([] if embedded else ["load_library libmoh_plugin.so"]), "deserialize"]


@nightly
@pytest.mark.parametrize("what", ["lost", "not taken"])
def test_an_engine_whose_plugins_are_not_to_be_had_is_refused(
    program: Program, fakes: Fakes, tmp_path: Path, what: str
):
    text = fakes.folder / "libmoh_plugin.so"
    text.write_text("no library")
    is_lost = what == "lost"
    root = write_engine(tmp_path / "engine", embedded=is_lost, plugin=None if is_lost else text)
    if is_lost:
        _without_plugin(root)
    (kind, message, hint), calls = program(_LOADED, root)
    assert kind == "BackendError"
    if is_lost:
        assert "ERROR: getPluginCreator could not find plugin MoHAttention" in message
        assert "Build the engine again" in hint
    else:
        assert message.startswith("TensorRT's plugin registry did not take ")
        assert "deserialize" not in calls


@nightly
def test_two_engines_share_a_plugin_library_but_not_two_libraries(
    program: Program, fakes: Fakes, tmp_path: Path
):
    first = fakes.library("libmoh_plugin.so", "int moh;")
    roots = [write_engine(tmp_path / name, plugin=first) for name in ("one", "same")]
    other = fakes.library("libmoh_plugin.so", "int another;")
    roots.append(write_engine(tmp_path / "other", plugin=other))
    found = program(
        """
engines = [Engine(root) for root in sys.argv[1:3]]
print(json.dumps(attempt(lambda: Engine(sys.argv[3]))))
""",
        *roots,
    )
    assert found[0] == "BackendError"
    assert f"{roots[0]}/libmoh_plugin.so is in this process already" in found[1]


@nightly
def test_an_engine_that_was_built_again_with_another_library_is_refused(
    program: Program, fakes: Fakes, tmp_path: Path
):
    roots = [
        write_engine(tmp_path / name, plugin=fakes.library("libmoh_plugin.so", f"int {name};"))
        for name in ("old", "new")
    ]
    found = program(
        """
import os, shutil
old, new = sys.argv[1:]
Engine(old).close()
shutil.copytree(old, old + ".same")
shutil.rmtree(old)
same = attempt(lambda: Engine(old + ".same").close())
shutil.rmtree(old + ".same")
os.rename(new, old)
print(json.dumps([same, attempt(lambda: Engine(old))]))
""",
        *roots,
    )
    assert found[0] is None
    assert found[1][0] == "BackendError"
    assert "another plugin library than " in found[1][1]


@sampled(5)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"compute_capabilities": ("8.6", "12.0")}, "of compute capability 8.6, 12.0; here is"),
        (
            {"versions": {"TensorRT": "10.9.0.34", "compute capability": "9.0"}},
            "was built on a GPU of compute capability 9.0; here is",
        ),
        ({"versions": {"TensorRT": "10.7.0"}}, "was built by TensorRT 10.7.0, here is 10.9.0.34"),
        (
            {"versions": {"TensorRT": "10.10.0"}, "version_compatible": True},
            "here is 10.9.0.34: engines of its kind run with that version and later ones of the sa",
        ),
        ({"versions": {"TensorRT": "9.3.0"}, "version_compatible": True}, "by TensorRT 9.3.0"),
        ({"backend": "tensorrt-rtx"}, "TensorRT-RTX"),
        ({"builder": BuilderOptions(strip_weights=True)}, "was built without its weights"),
    ],
)
def test_what_was_built_for_something_else_is_refused(
    program: Program, tmp_path: Path, change: dict[str, Any], message: str
):
    root = write_engine(tmp_path / "engine", replace(MANIFEST, **change))
    (kind, said, hint), calls = program(_LOADED, root)
    assert (kind, calls) == ("BackendError", [])
    assert message in said
    assert hint


@nightly
def test_later_versions_run_what_is_compatible_with_them(program: Program, tmp_path: Path):
    change = {"versions": {"TensorRT": "10.7.0"}, "version_compatible": True}
    root = write_engine(tmp_path / "engine", replace(MANIFEST, **change), embedded=True)
    assert program(_LOADED, root) == [None, ["deserialize"]]


@nightly
def test_tensorrt_that_is_missing_is_refused(fakes: Fakes, tmp_path: Path):
    if importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("there is TensorRT")
    fakes.driver()
    code = _HEAD + "print(json.dumps(attempt(lambda: Engine(sys.argv[1]))))"
    ran = python(code, write_engine(tmp_path / "engine"))
    assert "TensorRT is not installed" in json.loads(ran.stdout)[1]


_TIMED = """
import ctypes
import tensorrt as trt
class Timed(trt.IExecutionContext):
    def execute_async_v3(self, stream):
        ctypes.CDLL("libcuda.so.1").stand_in_run(ctypes.c_float(self._shape[0] / 8))
        return super().execute_async_v3(stream)
trt.IExecutionContext = Timed
with Engine(sys.argv[1]) as engine:
    times = [engine.gpu_ms({"x": x(*sizes)}) for sizes in ((2, 3), (8, 20))]
    times.append(engine.gpu_ms({"x": x(8, 20)}, graph=True))
    refused = attempt(lambda: engine.gpu_ms({"x": x(50, 3)}))
print(json.dumps([times, refused, [call for call in trt.CALLS if "profile" in call]]))
"""


@pytest.fixture
def driver_with_a_clock(program: Program, fakes: Fakes) -> None:
    driver = fakes.folder / "libcuda.so.1"
    driver.unlink()
    driver.symlink_to(builds.build("driver", [builds.HERE / "driver.cc"]))


def test_gpu_tells_its_time_without_copies(
    program: Program, driver_with_a_clock: None, tmp_path: Path
):
    times, refused, profiles = program(_TIMED, write_engine(tmp_path / "engine"))
    assert times == [0.25, 1.0, 1.0]
    assert profiles == ["profile 0", "profile 1", "profile 1"]
    assert refused[0] == "ConfigError"
    assert "was built for" in refused[1]


def test_graph_that_cannot_be_captured_is_not_timed(
    program: Program,
    driver_with_a_clock: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("STAND_IN_NO_CAPTURE", "1")
    code = """
engine = Engine(sys.argv[1])
print(json.dumps(attempt(lambda: engine.gpu_ms({"x": x(2, 3)}, graph=True))))
"""
    kind, said, _ = program(code, write_engine(tmp_path / "engine"))
    assert kind == "BackendError"
    assert "cuStreamEndCapture of the driver failed with CUDA_ERROR_STREAM_CAPTURE" in said


def test_output_of_unknown_shape_is_not_timed(
    program: Program, driver_with_a_clock: None, tmp_path: Path
):
    code = """
engine = Engine(sys.argv[1])
print(json.dumps(attempt(lambda: engine.gpu_ms({"x": x(2, 3)}))))
"""
    kind, said, _ = program(code, write_engine(tmp_path / "engine", by_value=True))
    assert kind == "BackendError"
    assert "the shape of 'y' depends on values: [-1, 3, 8]" in said
