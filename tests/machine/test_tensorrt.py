import importlib.util
from importlib.metadata import version
from pathlib import Path

import pytest

import moh_deploy
from moh_deploy.machine.ask import Failed
from moh_deploy.machine.gpu import LibraryFacts
from moh_deploy.machine.tensorrt import (
    Creator,
    CreatorRegistry,
    TensorRTFacts,
    probe_plugin,
    probe_tensorrt,
)
from moh_deploy.ops.plugin_support import PLUGINS
from tests.cuda.trt import builds
from tests.fakes import Fakes
from tests.nightly import nightly, sampled

NO_PLUGIN = Failed("there is none")
_FAKE = """
__version__ = "{version}"
class Creator: name, plugin_version, plugin_namespace = "MoHRouter", "1", "moh"
class Other: name, plugin_version, plugin_namespace = "Resize", "1", ""
class Registry:
    all_creators = [Other]
    def load_library(self, path):
        self.all_creators = [Other, Creator]
        return {handle}
def get_plugin_registry(): return Registry()
"""


def _of(name: str, plugin: LibraryFacts | Failed) -> TensorRTFacts:
    (found,) = [item for item in probe_tensorrt(plugin) if item.name == name]
    return found


def _fake_plugin(fakes: Fakes) -> LibraryFacts:
    code = f'const char* moh_plugin_version() {{ return "{moh_deploy.__version__}"; }}'
    found = probe_plugin(fakes.library("libmoh_plugin.so", code))
    assert isinstance(found, LibraryFacts)
    return found


@sampled(2)
@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("TensorRT-RTX", "tensorrt_rtx", "tensorrt-rtx-cu13"),
        ("TensorRT lean", "tensorrt_lean_bindings", "tensorrt-lean-cu13-bindings"),
    ],
)
def test_registries_of_this_machine_hold_the_plugins(name: str, module: str, package: str):
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"no {name}: pip install 'moh-deploy[test-tensorrt]'")
    plugin = probe_plugin(builds.plugin_on_fakes())
    found = _of(name, plugin)
    creators = tuple(Creator(op, "1", "moh") for op in sorted(PLUGINS))
    assert found.alone == CreatorRegistry(version(package), ())
    assert found.with_plugin == CreatorRegistry(version(package), creators)


def test_full_tensorrt_is_missing_unless_it_is_there():
    found = _of("TensorRT", NO_PLUGIN)
    if importlib.util.find_spec("tensorrt") is None:
        assert isinstance(found.alone, Failed)
        assert found.alone.why.startswith("TensorRT is not installed")
        assert "pip install tensorrt" in str(found.alone.fix)
    else:
        assert isinstance(found.alone, CreatorRegistry)


def test_creators_of_our_namespace_are_listed(fakes: Fakes):
    fakes.module("tensorrt", _FAKE.format(version="10.9.0.34", handle="object()"))
    found = _of("TensorRT", _fake_plugin(fakes))
    assert found.alone == CreatorRegistry("10.9.0.34", ())
    assert found.with_plugin == CreatorRegistry("10.9.0.34", (Creator("MoHRouter", "1", "moh"),))


@nightly
def test_a_registry_that_refuses_without_a_word_is_a_finding(fakes: Fakes):
    fakes.module("tensorrt", _FAKE.format(version="10.9.0.34", handle="None"))
    plugin = _fake_plugin(fakes)
    found = _of("TensorRT", plugin)
    assert isinstance(found.alone, CreatorRegistry)
    assert found.with_plugin == Failed(f"the plugin registry did not take {plugin.path}")


def test_one_that_crashes_is_a_finding(fakes: Fakes):
    fakes.module("tensorrt", "import os\nos.abort()\n")
    found = _of("TensorRT", _fake_plugin(fakes))
    assert isinstance(found.alone, Failed)
    assert found.alone.why.startswith("tensorrt: it crashed: the process ended with SIGABRT")
    assert found.with_plugin is None


def test_something_else_in_the_place_of_the_library_is_not_loaded(tmp_path: Path):
    assert _of("TensorRT-RTX", NO_PLUGIN).with_plugin is None
