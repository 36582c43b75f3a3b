"""What `make lock` wrote fits pyproject.toml, and has hashes."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tools.locked_requirements import locked_requirements

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()
LOCKS = dict(
    re.findall(r"locked_requirements.py (.+?) \|[^|]+?--output-file (\S+)", MAKEFILE, re.S)
)


def test_make_lock_writes_the_locks_of_the_image_and_of_developers():
    assert LOCKS == {
        "polygraphy serve otel": "requirements-image.txt",
        "dev": "requirements-dev.txt",
    }


@pytest.mark.parametrize("extras", LOCKS)
def test_locked_versions_are_within_the_bounds_of_the_package(extras: str):
    pins = re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / LOCKS[extras]).read_text(), re.M)
    for line in locked_requirements(*extras.split()):
        required = Requirement(line)
        assert required.marker is None
        versions = [version for name, version in pins if name == canonicalize_name(required.name)]
        assert versions, line
        assert all(version in required.specifier for version in versions), line


@pytest.mark.parametrize("name", LOCKS.values())
def test_locked_versions_have_hashes_and_no_index_is_named(name: str):
    lock = (ROOT / name).read_text()
    blocks = re.split(r"\n(?=[\w.-]+==)", lock)[1:]
    assert blocks
    line = re.compile(r" +--hash=sha256:[0-9a-f]{64}( \\)?")
    for block in blocks:
        first, *hashes = block.rstrip().splitlines()
        assert re.fullmatch(r"[\w.-]+==[\w.]+( ; [^\\]+)? \\", first), first
        assert hashes, first
        assert all(map(line.fullmatch, hashes)), first
    assert "://" not in lock
    assert not re.search("^(torch|triton|nvidia|cuda)", lock, re.M)


def test_lock_of_the_image_is_for_a_python_that_the_package_takes():
    (python,) = re.findall(r"^IMAGE_PYTHON := (\S+)$", MAKEFILE, re.M)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert python in SpecifierSet(project["requires-python"])
