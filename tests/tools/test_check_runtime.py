import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.handmade_package import write_package
from tests.kernel_library import required_library

TOOL = Path(__file__).parents[2] / "tools" / "check_runtime.py"


def check(*arguments: Path | str) -> tuple[int, list[str]]:
    """Return the exit code and the lines of stdout."""
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout.splitlines()


def test_packages_that_compute_what_they_recorded_pass(tmp_path: Path):
    roots = [write_package(tmp_path / name, external_data=name == "b").root for name in "ab"]
    code, (line,) = check(*roots)
    assert code == 0
    assert line.endswith("function bodies: 2 packages, 0 problems")


def test_packages_run_on_kernels(tmp_path: Path):
    code, (line,) = check(write_package(tmp_path / "a").root, "--kernels", required_library())
    assert code == 0
    assert line.endswith("kernels: 1 packages, 0 problems")


def test_output_that_is_off_is_named(tmp_path: Path):
    wrong = write_package(tmp_path / "wrong", scale=1.01).root
    code, lines = check(write_package(tmp_path / "right").root, wrong)
    assert code == 1
    assert lines[0].startswith(f"{wrong}: output 'y' is off by ")
    assert lines[1].endswith("2 packages, 1 problems")


def test_package_that_does_not_load_is_refused(tmp_path: Path):
    root = write_package(tmp_path / "bad").root
    (root / "model.onnx").write_bytes(b"no model")
    assert_refused(root)


def test_package_that_does_not_run_is_refused(tmp_path: Path):
    root = write_package(tmp_path / "bad").root
    arrays = dict(np.load(root / "vectors.npz"))
    np.savez(root / "vectors.npz", **{**arrays, "0/inputs/x": arrays["0/inputs/x"][..., :-1]})
    assert_refused(root)


def assert_refused(root: Path) -> None:
    code, lines = check(root)
    assert code == 1
    assert lines[0].startswith(f"{root}: refused: ")
    assert lines[-1].endswith("1 packages, 1 problems")
