"""What the Dockerfile names is there. The image itself is not built by the tests."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Dockerfile").read_text()


def test_targets_of_make_and_cmake_exist():
    makefile = (ROOT / "Makefile").read_text()
    (target,) = re.findall(r"&& make (\w+)", TEXT)
    assert re.search(rf"^{target}:", makefile, re.M)
    cmake = "".join(path.read_text() for path in (ROOT / "plugins").rglob("*.cmake"))
    targets = re.findall(r"--target (\w+)", TEXT)
    assert targets == ["moh_plugin_registered"]
    assert all(f"add_library({target} " in cmake for target in targets)


def test_libraries_that_are_copied_are_built():
    copied = re.findall(r"/src/build/cuda/lib(\w+)\.so", TEXT)
    assert copied == ["moh_plugin", "moh_plugin_registered"]
    cmake = "".join(path.read_text() for path in (ROOT / "plugins").rglob("*.cmake"))
    assert all(f"add_library({name} SHARED" in cmake for name in copied)


def test_packages_of_the_cpu_kernels_are_those_that_the_build_asks_for():
    needed = (ROOT / "tools" / "build_kernels.py").read_text()
    (packages,) = re.findall(r"apt install ([^\"]+)\"", needed)
    (stage,) = re.findall(r"AS wheel(.*?)FROM", TEXT, re.S)
    assert set(packages.split()) <= set(stage.split())


def test_the_extra_exists():
    (extra,) = re.findall(r"\.whl\)\[(\w+)\]", TEXT)
    assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(), re.M)


def test_what_this_machine_built_stays_out():
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", "build", "moh_deploy/native/*.so"} <= set(ignored)


def test_image_ends_as_an_ordinary_user():
    *_, last = re.findall(r"^USER (\w+)$", TEXT, re.M)
    assert last != "root"
    assert TEXT.index(f"USER {last}") > TEXT.index("RUN moh-deploy doctor")
