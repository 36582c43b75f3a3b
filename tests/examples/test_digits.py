"""The demo as a user runs it, with a shorter training, and its verdict when something is wrong."""

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from moh_deploy.native import kernel_library
from moh_deploy.runtime.kernel_use import KernelUse
from moh_deploy.validate.compare.parity_report import ParityReport
from moh_deploy.validate.compare.parity_result import OutputParity
from tests.examples.digits_demo import DIGITS, DemoRun
from tests.kernel_library import NO_KERNELS, required_library
from tests.nightly import nightly

README = DIGITS.parents[1] / "README.md"


@pytest.fixture
def finished(digits_demo: DemoRun) -> subprocess.CompletedProcess[str]:
    return digits_demo.process


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The demo's module, which like any script imports its neighbours by their bare names."""
    monkeypatch.syspath_prepend(str(DIGITS))
    yield import_module("demo")
    for name in ("demo", "model", "record", "train"):
        sys.modules.pop(name, None)


@nightly
def test_demo_succeeds(finished: subprocess.CompletedProcess[str]) -> None:
    assert finished.returncode == 0, finished.stdout + finished.stderr


@nightly
def test_quick_start_of_the_readme_prints_what_it_says(
    digits_demo: DemoRun, tmp_path: Path
) -> None:
    required_library()
    blocks = dict(re.findall(r"^```(python|text)\n(.*?)^```", README.read_text(), re.M | re.S))
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "digits").symlink_to(digits_demo.work_dir)
    (tmp_path / "examples").symlink_to(DIGITS.parent)
    command = [sys.executable, "-c", blocks["python"]]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    routing, accuracy = blocks["text"].splitlines()
    got = ran.stdout.splitlines()
    assert got[0] == routing, ran.stderr
    # Accuracy is that of the training, which is shorter here.
    assert re.sub(r"[\d.]+", "N", got[1]) == re.sub(r"[\d.]+", "N", accuracy)


@pytest.mark.parametrize(
    "row",
    [
        r"same prediction\W+360/360\W",
        r"same heads chosen\W+100\.0000%",
        r"MoH layers, replaced\W+3, 3\W",
        r"heads active\W+62\.5%",  # Two shared and three chosen of eight.
    ],
)
def test_demo_ends_with_a_table(finished: subprocess.CompletedProcess[str], row: str) -> None:
    assert re.search(row, finished.stdout), finished.stdout + finished.stderr


def test_demo_says_what_ran_the_layers(finished: subprocess.CompletedProcess[str]) -> None:
    impl = r"kernel \(\w+\)" if kernel_library() else "function body"
    assert re.search(f"^MoH layers run by: {impl}$", finished.stdout, re.MULTILINE)


def test_demo_compares_the_same_package_without_kernels(
    finished: subprocess.CompletedProcess[str],
) -> None:
    required_library()
    row = r"MoH layers run by\W+kernel \(\w+\)\W+function body\W"
    assert re.search(row, finished.stdout), finished.stdout
    assert re.search(r"same prediction\W+360/360\W+360/360\W", finished.stdout)


def comparison(
    demo: ModuleType,
    *,
    torch: list[int],
    package: list[int],
    reason: str | None = None,
    kernels: KernelUse = NO_KERNELS,
) -> object:
    """Four images of the digits 0 to 3, and what each side says they are."""
    output = OutputParity("logits", "0", 0.5, 0.1, 1e-4, reason)
    parity = ParityReport("the model in PyTorch", 1, (output,), (), True, 0, 3, (), kernels)
    return demo.Comparison(np.arange(4), np.array(torch), np.array(package), parity, 0.625)


def test_verdict_is_good_if_all_is_equal(demo: ModuleType) -> None:
    good = comparison(demo, torch=[0, 1, 2, 9], package=[0, 1, 2, 9])
    assert demo.verdict(good, min_accuracy=0.75) == 0


def test_verdict_is_bad_if_kernels_are_there_but_not_used(demo: ModuleType, capsys) -> None:
    kernels = KernelUse(Path("lib.so"), None, "avx2")
    unused = comparison(demo, torch=[0, 1, 2, 3], package=[0, 1, 2, 3], kernels=kernels)
    assert demo.verdict(unused, min_accuracy=0.75) == 1
    assert "kernels are there but not used: function body" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("torch", "package", "reason", "message"),
    [
        ([0, 1, 2, 9], [0, 1, 2, 8], None, "1 of 4 predictions differ"),
        ([0, 1, 9, 9], [0, 1, 9, 9], None, "accuracy is 50.00%, expected at least 75.00%"),
        ([0, 1, 2, 3], [0, 1, 2, 3], "logits differs by 0.5", "logits differs by 0.5"),
    ],
    ids=["prediction", "accuracy", "parity"],
)
def test_verdict_is_bad_if_anything_differs(
    demo: ModuleType,
    capsys: pytest.CaptureFixture[str],
    torch: list[int],
    package: list[int],
    reason: str | None,
    message: str,
) -> None:
    bad = comparison(demo, torch=torch, package=package, reason=reason)
    assert demo.verdict(bad, min_accuracy=0.75) == 1
    assert message in capsys.readouterr().err
