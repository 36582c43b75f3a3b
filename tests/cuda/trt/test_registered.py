"""libmoh_plugin_registered.so, dlopened by a program with a real registry: TensorRT 10's, lean."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cuda.trt import builds
from tests.cuda.trt.test_registries import lean

_SOURCE = builds.PLUGINS / "cuda" / "registered" / "register.cc"


@pytest.fixture(scope="module")
def program() -> Path:
    source, library = builds.HERE / "registered.cc", lean(10)
    return builds.build("registered", [source], libraries=(library,), kind=builds.PROGRAM)


@pytest.fixture
def registered(tmp_path: Path) -> Path:
    """The library, in a folder of its own."""
    built = builds.build("register", [_SOURCE], libraries=(lean(10),))
    return Path(shutil.copy(built, tmp_path / "libmoh_plugin_registered.so"))


def _counts(program: Path, library: Path, **environment: str) -> tuple[list[str], str]:
    ran = subprocess.run(
        [program, library], env=os.environ | environment, capture_output=True, text=True
    )
    return ran.stdout.split(), ran.stderr


def test_dlopen_of_the_plugin_library_registers_nothing(program: Path, fake_library: Path):
    assert _counts(program, fake_library)[0] == ["0", "0"]


def test_dlopen_of_the_other_registers_the_plugins(
    program: Path, registered: Path, fake_library: Path
):
    shutil.copy(fake_library, registered.with_name("libmoh_plugin.so"))
    assert _counts(program, registered) == (["0", "3"], "")


def test_preloading_does_too(program: Path, registered: Path, fake_library: Path):
    shutil.copy(fake_library, registered.with_name("libmoh_plugin.so"))
    assert _counts(program, registered, LD_PRELOAD=str(registered)) == (["3", "3"], "")


def test_a_plugin_library_that_is_missing_is_named(program: Path, registered: Path):
    counts, said = _counts(program, registered)
    assert counts == ["0", "0"]
    assert f"did not take {registered.with_name('libmoh_plugin.so')}." in said
