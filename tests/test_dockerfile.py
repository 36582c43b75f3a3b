"""What the Dockerfile names is there. The image itself is not built by the tests."""

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tools.image_requirements import image_requirements

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Dockerfile").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()


def test_target_of_make_exists():
    (target,) = re.findall(r"&& make (\w+)", TEXT)
    assert re.search(rf"^{target}:", MAKEFILE, re.M)


def test_libraries_that_are_copied_are_built():
    (pattern,) = re.findall(r"/src/(moh_deploy/native/\S+)", TEXT)
    (copied,) = re.findall(r"\tcp (build/cuda/\S+) (\S+) moh_deploy/native/", MAKEFILE)
    names = [Path(path).name for path in copied]
    assert names == ["libmoh_plugin.so", "libmoh_plugin_registered.so"]
    assert all(fnmatch(f"moh_deploy/native/{name}", pattern) for name in names)
    cmake = "".join(path.read_text() for path in (ROOT / "plugins").rglob("*.cmake"))
    assert all(
        f"add_library({Path(name).stem.removeprefix('lib')} SHARED" in cmake for name in names
    )


def test_packages_of_the_cpu_kernels_are_those_that_the_build_asks_for():
    needed = (ROOT / "tools" / "build_kernels.py").read_text()
    (packages,) = re.findall(r"apt install ([^\"]+)\"", needed)
    (stage,) = re.findall(r"AS wheel(.*?)FROM", TEXT, re.S)
    assert set(packages.split()) <= set(stage.split())


LOCK = (ROOT / "requirements-image.txt").read_text()
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)", LOCK, re.M))


def test_image_installs_what_is_locked_and_nothing_else():
    """By hash from the lock; the wheel itself, and its build, from no index."""
    installed = re.findall(r"pip (?:install|wheel) (.*)", TEXT)
    assert len(installed) == 3
    locked = [item for item in installed if "--no-index --no-deps" not in item]
    assert locked == [
        "--require-hashes --ignore-installed -r /requirements-image.txt && \\",
    ]
    assert "COPY requirements-image.txt /" in TEXT


@pytest.mark.parametrize("required", image_requirements())
def test_locked_version_is_within_the_bounds_of_the_package(required: str):
    requirement = Requirement(required)
    assert requirement.marker is None
    assert PINS[requirement.name] in requirement.specifier


def test_every_locked_version_has_hashes_and_no_index_is_named():
    blocks = re.split(r"\n(?=[\w.-]+==)", LOCK)[1:]
    assert len(blocks) == len(PINS) > len(image_requirements())
    line = re.compile(r" +--hash=sha256:[0-9a-f]{64}( \\)?")
    for block in blocks:
        first, *hashes = block.rstrip().splitlines()
        assert re.fullmatch(r"[\w.-]+==[\w.]+ \\", first), first
        assert hashes, first
        assert all(map(line.fullmatch, hashes)), first
    assert "://" not in LOCK
    assert "torch" not in PINS


def test_lock_is_for_a_python_that_the_package_takes():
    (python,) = re.findall(r"^IMAGE_PYTHON := (\S+)$", MAKEFILE, re.M)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert python in SpecifierSet(project["requires-python"])


def test_what_this_machine_built_stays_out():
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", "build", "moh_deploy/native/*.so"} <= set(ignored)


def test_image_ends_as_an_ordinary_user():
    *_, last = re.findall(r"^USER (\w+)$", TEXT, re.M)
    assert last != "root"
    assert TEXT.index(f"USER {last}") > TEXT.rindex("\nRUN ")
