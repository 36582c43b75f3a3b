"""Installing with and without what the kernels need, on a small stand-in for the native sources."""

import fcntl
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path
from types import ModuleType
from zipfile import ZipFile

import pytest

from moh_deploy.native.build_openvino import EXTENSION_SOURCES
from tests.nightly import nightly

REPOSITORY = Path(__file__).parents[1]
NATIVE = Path("moh_deploy", "native")
LIBRARY = NATIVE / "libmoh_ort_cpu.so"
RECORD = NATIVE / "build.json"
PLATFORM = sysconfig.get_platform().replace("-", "_").replace(".", "_")

CMAKE = """\
cmake_minimum_required(VERSION 3.22)
project(stand_in LANGUAGES CXX)
add_library(moh_ort_cpu MODULE library.cc)
"""
MISSING = """\
cmake_minimum_required(VERSION 3.22)
project(stand_in LANGUAGES NONE)
message(FATAL_ERROR "moh-deploy: the headers of ONNX Runtime were not found in any of the places"
  " where they are expected; CMake breaks a line as long as this one.")
"""
SOURCE = 'extern "C" const char* stand_in() { return "VERSION"; }\n'

needs_cmake = pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")


@pytest.fixture(autouse=True)
def _nobody_says_what_to_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOH_DEPLOY_BUILD_KERNELS", raising=False)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The parts of the repository that an installation reads, with small native sources."""
    tree = tmp_path / "tree"
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        copy(name, tree)
    for path in (
        "tools/build_backend.py",
        "tools/build_kernels.py",
        "moh_deploy/__init__.py",
        "moh_deploy/py.typed",
        "export_configs/moh_vit_s_75.yaml",
        "docs/verify.md",
    ):
        copy(path, tree)
    copy("moh_deploy/native/__init__.py", tree)
    (tree / "plugins").mkdir()
    (tree / "plugins" / "CMakeLists.txt").write_text(CMAKE)
    (tree / "plugins" / "library.cc").write_text(SOURCE)
    return tree


def copy(path: str, tree: Path) -> None:
    (tree / path).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(REPOSITORY / path, tree / path)


@pytest.fixture
def builder(tree: Path) -> ModuleType:
    """`tools/build_kernels.py` of the tree."""
    spec = importlib.util.spec_from_file_location("builder", tree / "tools" / "build_kernels.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def stale(tree: Path) -> Path:
    """A library of an earlier build."""
    (tree / LIBRARY).write_bytes(b"stale")
    return tree / LIBRARY


def reason(folder: Path) -> str | None:
    recorded: str | None = json.loads((folder / "build.json").read_text())["reason"]
    return recorded


# The build itself.


@needs_cmake
def test_library_is_built_and_replaces_an_older_one(
    tree: Path, builder: ModuleType, stale: Path, capsys: pytest.CaptureFixture[str]
):
    assert builder.build_kernels(tree / NATIVE)
    assert b"VERSION" in stale.read_bytes()
    assert reason(tree / NATIVE) is None
    (tree / "plugins" / "library.cc").write_text(SOURCE.replace("VERSION", "CHANGED"))
    assert builder.build_kernels(tree / NATIVE)
    assert b"CHANGED" in stale.read_bytes()
    assert capsys.readouterr().err == ""


@needs_cmake
def test_nobody_else_builds_here_at_the_same_time(tree: Path, builder: ModuleType, monkeypatch):
    def is_locked() -> None:
        with (
            open(tree / "build" / "kernels.lock", "w") as lock,
            pytest.raises(BlockingIOError),
        ):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def compile_nothing(cmake: str, target: str | None) -> Path:
        is_locked()
        return tree / "plugins" / "library.cc"

    def put(library: Path, into: Path) -> None:
        is_locked()
        shutil.copyfile(library, into)

    monkeypatch.setattr(builder, "_compile", compile_nothing)
    monkeypatch.setattr(builder, "_replace", put)
    assert builder.build_kernels(tree / NATIVE)


@nightly
@needs_cmake
def test_flags_that_failed_are_not_kept(tree: Path, builder: ModuleType, monkeypatch):
    (tree / "plugins" / "library.cc").write_text(f"#ifdef WRONG\n#error wrong\n#endif\n{SOURCE}")
    monkeypatch.setenv("CXXFLAGS", "-DWRONG")
    assert not builder.build_kernels(tree / NATIVE)
    monkeypatch.delenv("CXXFLAGS")
    assert builder.build_kernels(tree / NATIVE)


@nightly
@needs_cmake
def test_build_folder_of_another_place_is_not_used(tree: Path, builder: ModuleType, tmp_path: Path):
    assert builder.build_kernels(tree / NATIVE)
    moved = tree.rename(tmp_path / "moved")
    builder.ROOT = moved
    assert builder.build_kernels(moved / NATIVE)


@needs_cmake
def test_headers_that_are_missing_are_named_in_one_line_and_on_record(
    tree: Path, builder: ModuleType, stale: Path, capsys: pytest.CaptureFixture[str]
):
    (tree / "plugins" / "CMakeLists.txt").write_text(MISSING)
    assert not builder.build_kernels(tree / NATIVE)
    assert not stale.exists()
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(
        "moh-deploy: built without CPU kernels: the headers of ONNX Runtime were"
    )
    assert "apt install cmake make g++ libonnxruntime-dev libhwy-dev" in said
    assert str(reason(tree / NATIVE)).endswith("CMake breaks a line as long as this one")


@needs_cmake
def test_compiler_that_fails_is_said_to_have_failed_and_its_log_is_kept(
    tree: Path, builder: ModuleType, stale: Path, capsys: pytest.CaptureFixture[str]
):
    (tree / "plugins" / "library.cc").write_text("int wrong() { return undeclared; }\n")
    assert not builder.build_kernels(tree / NATIVE)
    assert not stale.exists()
    assert "the compiler failed: " in str(reason(tree / NATIVE))
    assert "undeclared" in capsys.readouterr().err
    assert "library.cc" in (tree / NATIVE / "build.log").read_text()


def test_missing_cmake_is_named(tree: Path, builder: ModuleType, stale: Path, monkeypatch):
    monkeypatch.setenv("PATH", str(tree))
    assert not builder.build_kernels(tree / NATIVE)
    assert not stale.exists()
    assert reason(tree / NATIVE) == "cmake was not found"


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("  No CMAKE_CXX_COMPILER could be found.\n", "no C++ compiler was found"),
        ("  Could not find compiler set in environment variable CXX:\n", "no C++ compiler"),
        ("CMake was unable to find a build program corresponding to\n", "make was not found"),
        ("ok\nCMake Error: out of luck\nmore\n", "CMake failed: CMake Error: out of luck"),
        ("", "CMake failed: "),
    ],
)
def test_words_of_cmake_are_understood(builder: ModuleType, said: str, found: str):
    assert builder._missing(said).startswith(found)


def test_kernels_can_be_switched_off(
    tree: Path,
    builder: ModuleType,
    stale: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("MOH_DEPLOY_BUILD_KERNELS", "off")
    assert not builder.build_kernels(tree / NATIVE)
    assert not stale.exists()
    assert "BUILD_KERNELS=off" in str(reason(tree / NATIVE))
    assert "apt install" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("mode", "message"),
    [("require", "cmake was not found"), ("yes", "is 'yes', expected auto, off")],
)
def test_required_kernels_that_cannot_be_built_are_an_error(
    tree: Path, builder: ModuleType, monkeypatch: pytest.MonkeyPatch, mode: str, message: str
):
    monkeypatch.setenv("MOH_DEPLOY_BUILD_KERNELS", mode)
    monkeypatch.setenv("PATH", str(tree))
    with pytest.raises(builder.NoKernels, match=message):
        builder.build_kernels(tree / NATIVE)


# The installation. These are the functions that pip calls.


def run_hook(tree: Path, call: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a call of a hook of PEP 517."""
    code = f"import sys; sys.path.insert(0, 'tools'); import build_backend; build_backend.{call}"
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=tree,
        env=environment or None,
        capture_output=True,
        text=True,
    )


def call_hook(tree: Path, hook: str, output: Path, **environment: str) -> Path:
    """Call a hook, and return the file that it made."""
    output.mkdir()
    done = run_hook(tree, f"{hook}({str(output)!r})", **environment)
    assert done.returncode == 0, done.stderr
    (made,) = output.iterdir()
    return made


def content(wheel: Path) -> dict[str, bytes]:
    with ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@needs_cmake
def test_wheel_with_the_library_is_for_this_platform(tree: Path, tmp_path: Path):
    wheel = call_hook(tree, "build_wheel", tmp_path / "out")
    assert wheel.name.endswith(f"-py3-none-{PLATFORM}.whl")
    files = content(wheel)
    assert b"VERSION" in files[LIBRARY.as_posix()]
    assert "moh_deploy/export_configs/moh_vit_s_75.yaml" in files
    assert json.loads(files[RECORD.as_posix()]) == {"reason": None}
    assert not (tree / LIBRARY).exists()


def test_wheel_without_the_library_is_for_any_platform_and_says_why(
    tree: Path, stale: Path, tmp_path: Path
):
    leftover = tree / "build" / "lib" / LIBRARY
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"stale")
    wheel = call_hook(tree, "build_wheel", tmp_path / "out", PATH=str(tree))
    assert wheel.name.endswith("-py3-none-any.whl")
    files = content(wheel)
    assert not [name for name in files if name.endswith(".so")]
    assert json.loads(files[RECORD.as_posix()]) == {"reason": "cmake was not found"}
    # `moh-deploy help verify` shows it where there are no sources.
    assert files["moh_deploy/docs/verify.md"] == (REPOSITORY / "docs/verify.md").read_bytes()


@pytest.mark.parametrize("hook", ["build_wheel", "build_editable"])
def test_pips_option_switches_kernels_off(tree: Path, hook: str, tmp_path: Path):
    (tmp_path / "out").mkdir()
    done = run_hook(tree, f"{hook}({str(tmp_path / 'out')!r}, {{'kernels': 'off'}})")
    assert done.returncode == 0, done.stderr
    assert "built without CPU kernels: switched off" in done.stderr


def test_a_wrong_value_of_pips_option_is_an_error(tree: Path, tmp_path: Path):
    done = run_hook(tree, f"build_wheel({str(tmp_path)!r}, {{'kernels': 'no'}})")
    assert "MOH_DEPLOY_BUILD_KERNELS is 'no', expected auto, off or require" in done.stderr


@needs_cmake
def test_editable_installation_puts_the_library_among_the_sources(tree: Path, tmp_path: Path):
    wheel = call_hook(tree, "build_editable", tmp_path / "out")
    assert b"VERSION" in (tree / LIBRARY).read_bytes()
    assert LIBRARY.as_posix() not in content(wheel)


def test_source_distribution_holds_the_native_sources_and_neither_library_nor_tests(
    tree: Path, stale: Path, tmp_path: Path
):
    (tree / RECORD).write_text("{}")
    (tree / "tests").mkdir()  # which need more than setuptools would pick of them
    (tree / "tests" / "test_one.py").write_text("import tests.helpers")
    archive = call_hook(tree, "build_sdist", tmp_path / "out")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    assert {"plugins/CMakeLists.txt", "plugins/library.cc", "tools/build_kernels.py"} <= names
    assert "export_configs/moh_vit_s_75.yaml" in names
    assert not names & {LIBRARY.as_posix(), RECORD.as_posix()}
    assert not [name for name in names if name.startswith("tests")]


@nightly
def test_wheels_are_made_without_installing_the_project(tmp_path: Path):
    shown = subprocess.run(
        ["make", "--dry-run", "wheels", f"VENV={tmp_path}"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.count("python -m build --") == 3
    assert "--editable" not in shown.stdout


def test_wheel_holds_what_the_extension_of_openvino_is_compiled_from(tree: Path, tmp_path: Path):
    for folder in ("openvino", "nodes", "include/moh", "cpu"):
        shutil.copytree(REPOSITORY / "plugins" / folder, tree / "plugins" / folder)
    files = content(call_hook(tree, "build_wheel", tmp_path / "out", PATH=str(tree)))
    plugins = NATIVE / "plugins"
    shipped = {name: text for name, text in files.items() if Path(name).is_relative_to(plugins)}
    assert {(plugins / source).as_posix() for source in EXTENSION_SOURCES} <= set(shipped)
    for name, text in shipped.items():
        for include in re.findall(r'^#include "(.+)"', text.decode(), re.M):
            places = {(plugins / item / include).as_posix() for item in ("", "include")}
            assert places & set(shipped), f"{name} includes {include}"


# A wheel for a target, with stand-ins for the tools that come from PyPI.

WRITES_DOWN_WHAT_IT_IS_TOLD = """\
#!/bin/sh
echo "$*" >> {folder}/told
if [ "$1" = --build ]; then echo library > "$2/libmoh_ort_cpu.so"; else mkdir -p "$4"; fi
"""


@pytest.fixture
def pypi(tmp_path: Path) -> Path:
    """A folder with cmake, zig and an auditwheel."""
    folder = tmp_path / "pypi"
    (folder / "ziglang").mkdir(parents=True)
    (folder / "ziglang" / "__init__.py").touch()
    (folder / "cmake").write_text(WRITES_DOWN_WHAT_IT_IS_TOLD.format(folder=folder))
    (folder / "cmake").chmod(0o755)
    says(folder, "manylinux_2_18_aarch64")
    return folder


def says(folder: Path, tag: str) -> None:
    (folder / "auditwheel.py").write_text(f'print(\'{{"overall_tag": "{tag}"}}\')\n')


def build_for(
    target: str, tree: Path, pypi: Path, output: Path
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Build a wheel for a target; return the process, and the names of what it made."""
    output.mkdir()
    done = run_hook(
        tree,
        f"build_wheel({str(output)!r}, {{'target': {target!r}}})",
        PATH=f"{pypi}:/usr/bin:/bin",
        PYTHONPATH=str(pypi),
    )
    return done, [path.name for path in output.iterdir()]


def test_wheel_for_a_target_is_compiled_by_zig_and_named_by_what_it_runs_on(
    tree: Path, pypi: Path, tmp_path: Path
):
    leftover = tree / "build" / "kernels-aarch64" / "of_another_zig"
    leftover.mkdir(parents=True)
    done, (name,) = build_for("aarch64", tree, pypi, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert not leftover.exists()
    assert name.endswith("-py3-none-manylinux_2_28_aarch64.whl")
    assert content(tmp_path / "out" / name)[LIBRARY.as_posix()] == b"library\n"
    told = (pypi / "told").read_text()
    assert f"-DMOH_ZIG={pypi / 'ziglang' / 'zig'} " in told
    assert "-DMOH_ZIG_TARGET=aarch64-linux-gnu.2.28 " in told
    assert told.count("kernels-aarch64") == 2


@pytest.mark.parametrize(
    "found", ["manylinux_2_29_aarch64", "manylinux_2_17_x86_64", "linux_aarch64"]
)
def test_wheel_that_asks_for_more_than_its_name_says_is_refused(
    tree: Path, pypi: Path, tmp_path: Path, found: str
):
    says(pypi, found)
    done, _ = build_for("aarch64", tree, pypi, tmp_path / "out")
    assert done.returncode
    assert f"good for less than its name says; auditwheel: {found}" in done.stderr


def test_target_that_nobody_knows_is_refused(tree: Path, pypi: Path, tmp_path: Path):
    done, made = build_for("riscv64", tree, pypi, tmp_path / "out")
    assert (done.returncode, made) == (1, [])
    assert "the target is 'riscv64', expected x86_64 or aarch64" in done.stderr


def test_target_without_zig_is_refused(builder: ModuleType, monkeypatch, tmp_path: Path):
    monkeypatch.setattr(builder.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(builder.NoKernels, match="zig was not found: pip install ziglang"):
        builder._by_zig(tmp_path, "x86_64")


def test_zig_is_asked_for_where_there_is_a_target_only(tree: Path):
    asked = "print(build_backend.get_requires_for_build_wheel({}))"
    for settings, is_asked in (("{'target': 'x86_64'}", True), ("None", False)):
        done = run_hook(tree, f"sys; {asked.format(settings)}")
        assert ("ziglang" in done.stdout, done.returncode) == (is_asked, 0), done.stderr


# What make does first.


def install_dependencies(
    tmp_path: Path, script: str = "install-build-dependencies", **programs: str
) -> tuple[str, str]:
    """Run the script where only these programs are; return what it says and what it called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in programs.items():
        program = folder / name.replace("_", "-")
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
    calls = tmp_path / "calls"
    calls.touch()
    done = subprocess.run(
        ["/bin/sh", str(REPOSITORY / "tools" / script)],
        env={"PATH": str(folder), "CALLS": str(calls)},
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stderr, calls.read_text()


APT_GET = 'echo "apt-get $*" >> "$CALLS"'


def test_root_gets_what_is_missing(tmp_path: Path):
    said, called = install_dependencies(tmp_path, apt_get=APT_GET, id="echo 0")
    update, install = called.splitlines()
    assert update.startswith("apt-get update")
    assert " cmake make g++" in install
    assert "installing cmake make g++" in said


def test_user_with_sudo_that_asks_nothing_gets_it_too(tmp_path: Path):
    sudo = 'shift; "$@"'
    _, called = install_dependencies(
        tmp_path, apt_get=APT_GET, id="echo 1000", sudo=sudo, true="exit 0"
    )
    assert called.count("apt-get") == 2


def test_other_users_are_told_what_to_run(tmp_path: Path):
    said, called = install_dependencies(tmp_path, apt_get=APT_GET, id="echo 1000", sudo="exit 1")
    assert "run: sudo apt-get install cmake make g++" in said
    assert called == ""


def test_other_systems_are_told_what_is_needed(tmp_path: Path):
    said, _ = install_dependencies(tmp_path, id="echo 0")
    assert "CPU kernels need cmake, make, a C++17 compiler" in said


def test_package_that_apt_does_not_have_is_no_failure(tmp_path: Path):
    said, _ = install_dependencies(tmp_path, apt_get="exit 100", id="echo 0")
    assert "apt-get failed" in said


@pytest.mark.parametrize("name", ["chromium", "chromium_browser", "google_chrome"])
def test_browser_that_is_there_is_not_installed(tmp_path: Path, name: str):
    there = {name: "exit 0", "promtool": "exit 0"}
    said, called = install_dependencies(
        tmp_path, "install-test-dependencies", apt_get=APT_GET, id="echo 0", **there
    )
    assert (said, called) == ("", "")


def test_browser_is_installed_for_tests_only(tmp_path: Path):
    said, called = install_dependencies(
        tmp_path, "install-test-dependencies", apt_get=APT_GET, id="echo 0", promtool="exit 0"
    )
    assert " chromium" in called.splitlines()[1]
    assert "installing chromium" in said
    (tmp_path / "build").mkdir()
    _, called = install_dependencies(tmp_path / "build", apt_get=APT_GET, id="echo 0")
    assert "chromium" not in called


def test_promtool_is_installed_by_itself(tmp_path: Path):
    # Where apt has no promtool, the browser is installed all the same.
    said, called = install_dependencies(
        tmp_path, "install-test-dependencies", apt_get=APT_GET, id="echo 0", chromium="exit 0"
    )
    assert said == "moh-deploy: installing promtool\n"
    assert called.splitlines()[1].endswith(" promtool")


def test_without_a_browser_tests_are_said_to_be_skipped(tmp_path: Path):
    said, _ = install_dependencies(
        tmp_path, "install-test-dependencies", apt_get="exit 100", id="echo 0"
    )
    assert "the tests of HTML reports are skipped" in said
