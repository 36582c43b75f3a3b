"""The C++ example is built by the lines that docs/opening-packages.md prints, and agrees."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import moh_deploy
from tests.examples.digits_demo import DemoRun
from tests.kept_builds import ROOT
from tests.nightly import nightly

PAGE = (ROOT / "docs" / "opening-packages.md").read_text()
# The lines of the page, with the places of this test in those of the page.
LINES = re.findall(r"^\$ (.*)$", PAGE.split("## ONNX Runtime in C++")[1].split("\n## ")[0], re.M)


@nightly
@pytest.mark.parametrize("with_kernels", [True, False])
def test_example_prints_the_classes_of_the_package(
    digits_demo: DemoRun, tmp_path: Path, with_kernels: bool
):
    if not Path("/usr/include/onnxruntime").is_dir():
        pytest.skip("ONNX Runtime's headers were not found: apt install libonnxruntime-dev")
    install, build, write, run = LINES
    assert install.startswith("sudo apt install")
    assert "libonnxruntime-dev" in install
    places = {
        "build/cpp": tmp_path / "cpp",
        "build/digits/held-out.npz": digits_demo.work_dir / "held-out.npz",
        "build/images.f32": tmp_path / "images.f32",
        "build/digits/package": digits_demo.package,
        ".venv/bin/python": sys.executable,
    }
    library = " moh_deploy/native/libmoh_ort_cpu.so"
    assert run.endswith(library)
    if not with_kernels:
        run = run.removesuffix(library)
    printed = ""
    for line in (build, write, run):
        for place, here in places.items():
            line = line.replace(place, str(here))
        done = subprocess.run(line, shell=True, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        printed = done.stdout
    images = np.load(digits_demo.work_dir / "held-out.npz")["images"][:3]
    logits = moh_deploy.load(digits_demo.package)(images)
    expected = zip(logits.argmax(1), logits.max(1), strict=True)
    found = re.findall(r"image \d: class (\d), logit (-?\d+\.\d+)", printed)
    assert len(found) == 3
    for (number, logit), (right, highest) in zip(found, expected, strict=True):
        assert int(number) == right
        assert float(logit) == pytest.approx(highest, abs=2e-4)
