"""A wheel of `make wheels` for this machine, unpacked: its kernels are those of the sources."""

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from moh_deploy.ops.cases import find_mismatch
from moh_deploy.runtime.kernel_use import instruction_sets
from tests.kept_builds import BUILDS, ROOT, build_once, digest_of
from tests.ops.cases import ALL_CASES
from tests.plugins.kernels import Kernels
from tests.plugins.test_instruction_sets import sets_of_this_machine

pytestmark = pytest.mark.nightly

FOLDER = BUILDS / "wheel"
LIBRARY = "moh_deploy/native/libmoh_ort_cpu.so"


@pytest.fixture(scope="session")
def wheel() -> Path:
    """The wheel, built by the hook that `python -m build -C target=...` calls."""
    if (
        importlib.util.find_spec("ziglang") is None
        or importlib.util.find_spec("auditwheel") is None
    ):
        pytest.skip("no zig: pip install 'moh-deploy[wheels]'")

    def build() -> None:
        code = (
            "import sys; sys.path.insert(0, 'tools'); from build_backend import build_wheel;"
            f" build_wheel({str(FOLDER)!r}, {{'target': {platform.machine()!r}}})"
        )
        FOLDER.mkdir(parents=True, exist_ok=True)
        for old in FOLDER.glob("*.whl"):
            old.unlink()
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
        (made,) = FOLDER.glob("*.whl")
        os.replace(made, FOLDER / "wheel.zip")
        (FOLDER / "name").write_text(made.name)

    sources = [path for path in (ROOT / "plugins").rglob("*") if path.is_file()]
    sources += [*(ROOT / "tools").glob("build_*.py"), ROOT / "setup.py"]
    return build_once(FOLDER / "wheel.zip", digest_of(sources, [platform.machine()]), build)


@pytest.fixture(scope="session")
def library(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with ZipFile(wheel) as archive:
        return Path(archive.extract(LIBRARY, tmp_path_factory.mktemp("wheel")))


def test_wheel_is_named_by_the_glibc_that_it_needs(wheel: Path):
    name = (wheel.parent / "name").read_text()
    assert name.endswith(f"-py3-none-manylinux_2_28_{platform.machine()}.whl")


def test_kernels_of_a_wheel_offer_all_that_this_machine_has(library: Path):
    assert instruction_sets(library) == sets_of_this_machine()


def test_kernels_of_a_wheel_compute_what_the_contract_says(library: Path):
    problems = [
        problem
        for instruction_set in instruction_sets(library)
        for case in ALL_CASES
        if (problem := find_mismatch(case, Kernels(library, instruction_set).run(case)))
    ]
    assert not problems, problems[:10]


def test_wheel_holds_the_licences_of_what_is_in_it(wheel: Path):
    with ZipFile(wheel) as archive:
        names = {Path(name).name for name in archive.namelist() if "/licenses/" in name}
    assert names == {"LICENSE", "THIRD_PARTY_LICENSES"}


def test_the_same_sources_and_time_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1764547200")
    code = (
        "import sys; sys.path.insert(0, 'tools'); from build_backend import build_wheel;"
        " build_wheel(sys.argv[1], {'kernels': 'off'})"
    )
    made = []
    for name in ("first", "second"):
        copy = tmp_path / name / "sources"  # other paths and other times of files
        ignored = shutil.ignore_patterns(".*", "build", "dist", "tests", "*.so", "*.egg-info")
        shutil.copytree(ROOT, copy, ignore=ignored, copy_function=shutil.copyfile)
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], cwd=copy, check=True)
        made += [path.read_bytes() for path in (tmp_path / name).glob("*.whl")]
    assert len(made) == 2
    assert made[0] == made[1]
