"""What the Dockerfile names is there. The image itself is not built by the tests."""

import re
from fnmatch import fnmatch
from pathlib import Path

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


def test_image_installs_what_is_locked_and_nothing_else():
    """By hash from the lock; the wheel itself, and its build, from no index."""
    installed = re.findall(r"pip (?:install|wheel) (.*)", TEXT)
    assert len(installed) == 3
    locked = [item for item in installed if "--no-index --no-deps" not in item]
    assert locked == [
        "--require-hashes --ignore-installed -r /requirements-image.txt && \\",
    ]
    assert "COPY requirements-image.txt /" in TEXT


def test_what_this_machine_built_stays_out():
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", "build", "moh_deploy/native/*.so"} <= set(ignored)


def test_image_ends_as_an_ordinary_user():
    *_, last = re.findall(r"^USER (\w+)$", TEXT, re.M)
    assert last != "root"
    assert TEXT.index(f"USER {last}") > TEXT.rindex("\nRUN ")
