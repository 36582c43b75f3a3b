import re
import shutil
import subprocess
from pathlib import Path

import pytest

from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.runtime.tensorrt import build_plan
from moh_deploy.runtime.tensorrt.build_plan import BuildPlan, TimingCache, builder_options
from moh_deploy.runtime.tensorrt.flavour import FLAVOURS
from moh_deploy.runtime.tensorrt.messages import BuilderOptions, Stack
from tests.cuda.trt import builds
from tests.handmade_package import write_package
from tests.runtime.tensorrt.engines import plan_of


@pytest.mark.parametrize(
    ("level", "found", "is_refused"),
    [
        ("SAME_COMPUTE_CAPABILITY", "10.8.0.43", True),
        ("SAME_COMPUTE_CAPABILITY", "10.9.0.34", False),
        ("AMPERE_PLUS", "10.8.0.43", False),
        (None, "10.8.0.43", False),
    ],
)
def test_level_that_tensorrt_does_not_have_yet_is_refused(
    tmp_path: Path, level: str | None, found: str, is_refused: bool
):
    plan = plan_of(write_package(tmp_path / "package"), hardware_compatibility=level)
    assert plan.is_portable == (level == "AMPERE_PLUS")
    stack = Stack(found, None, None, None)
    if not is_refused:
        plan.require_hardware_level(stack)
        return
    with pytest.raises(BackendError, match=r"TensorRT 10\.8\.0\.43 builds no engine.*10\.9 or"):
        plan.require_hardware_level(stack)


@pytest.mark.parametrize(
    ("flavour", "taken", "too_old", "expected"),
    [
        ("tensorrt", ["10.7.0", "10.12.0"], "10.6.9", r"10\.7"),
        ("tensorrt-rtx", ["1.1.0.26", "1.10"], "1.0.9", r"1\.1"),
    ],
)
def test_oldest_version_is_taken_and_the_one_before_is_refused(
    flavour: str, taken: list[str], too_old: str, expected: str
):
    for version in taken:
        FLAVOURS[flavour].check_version(version)
    with pytest.raises(BackendError, match=f"is of version {too_old}, expected {expected} or"):
        FLAVOURS[flavour].check_version(too_old)


STACK = {"TensorRT": "10.14.1", "plugin library": None, "GPU": "NVIDIA L4"}


def test_times_are_read_on_the_same_stack(tmp_path: Path):
    cache = TimingCache(tmp_path / "times", STACK)
    assert cache.read() is None
    assert cache.why_ignored() is None
    cache.write(b"a\nb\0")
    assert TimingCache(tmp_path / "times", dict(STACK)).read() == b"a\nb\0"


def test_times_of_another_stack_are_ignored_with_the_difference(tmp_path: Path):
    TimingCache(tmp_path / "times", STACK).write(b"times")
    here = TimingCache(tmp_path / "times", STACK | {"GPU": "NVIDIA A10", "TensorRT": "10.15.0"})
    assert here.read() is None
    assert here.why_ignored() == (
        "it was measured with TensorRT 10.14.1, here 10.15.0; GPU NVIDIA L4, here NVIDIA A10"
    )


def test_a_file_of_somebody_else_is_ignored(tmp_path: Path):
    for content in (b"", b"\0\1\2", b"{}\n", b'{"kind": "other", "stack": {}}\n', b"[1]\n"):
        (tmp_path / "times").write_bytes(content)
        cache = TimingCache(tmp_path / "times", STACK)
        assert cache.read() is None
        assert cache.why_ignored() == "it is not a timing cache of moh-deploy"


DOCS = Path(__file__).parents[3] / "docs"


def test_what_loads_an_engine_compiles(tmp_path: Path):
    if shutil.which(builds.COMPILER) is None:
        pytest.skip(f"no C++ compiler: {builds.COMPILER}")
    (code,) = re.findall(r"```cpp\n(.*?)```", (DOCS / "tensorrt.md").read_text(), re.DOTALL)
    (tmp_path / "load.cc").write_text(code)
    headers = [builds.required_headers(), builds.cuda_headers()]
    includes = [word for folder in headers for word in ("-isystem", str(folder))]
    command = [builds.COMPILER, *builds.FLAGS, "-fsyntax-only", *includes, tmp_path / "load.cc"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _plan(**changes: object) -> BuildPlan:
    given = {"profiles": (), "targets": (), "workspace_bytes": None, "timing_cache": None}
    given |= {"library": None, "embed_plugin": False, "keep_onnx": False}
    return BuildPlan(FLAVOURS["tensorrt-rtx"], None, None, **(given | changes))


@pytest.mark.parametrize("asked", [{"refit": True}, {"strip_weights": True}])
def test_options_that_need_a_gpu_are_refused_without_one(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, bool]
):
    def nothing() -> None:
        raise BackendError("there is no driver")

    monkeypatch.setattr(build_plan, "read_driver", nothing)
    options = BuilderOptions(**asked)
    (name,) = asked
    with pytest.raises(BackendError, match=f"needs a GPU to build with --{name.replace('_', '-')}"):
        builder_options(options, FLAVOURS["tensorrt-rtx"])
    assert builder_options(options, FLAVOURS["tensorrt"]) == options
    monkeypatch.setattr(build_plan, "read_driver", lambda: None)
    assert builder_options(options, FLAVOURS["tensorrt-rtx"]) == options


def test_levels_of_optimization_go_from_0_to_5():
    for level in (None, 0, 5):
        options = BuilderOptions(optimization_level=level)
        assert builder_options(options, FLAVOURS["tensorrt-rtx"]) == options
    for level in (-1, 6):
        with pytest.raises(ConfigError, match=f"is {level}, expected 0 to 5"):
            builder_options(BuilderOptions(optimization_level=level), FLAVOURS["tensorrt"])


def test_every_option_of_the_builder_makes_another_engine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(BuildPlan, "package_sha256", "0")
    monkeypatch.setattr(BuildPlan, "precision", "float32")
    asked = [{}, {"refit": True}, {"weight_streaming": True}, {"strip_weights": True}]
    asked += [{"optimization_level": level} for level in (0, 3)]
    keys = {_plan(builder=BuilderOptions(**each)).key(Stack("1.7")) for each in asked}
    assert len(keys) == len(asked)
