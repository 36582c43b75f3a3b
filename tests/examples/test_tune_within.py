"""Real images: what is chosen under a condition on their labels, with times by dtype."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

import moh_deploy
from moh_deploy.package import OnnxPackage
from moh_deploy.perf.tune.report import SearchReport
from tests.examples.digits_demo import DemoRun
from tests.kernel_library import required_library
from tests.nightly import nightly
from tests.openvino_extension import install_extension

pytestmark = nightly

WITHIN = "top-1 >= 0.9 * reference"  # of 360 images, and a model that was trained for seconds


def searched(demo: DemoRun, output: Path, ms: Mapping[str, float], **options: str) -> SearchReport:
    assert demo.process.returncode == 0, demo.process.stderr

    def measure(
        what: str, candidates: Mapping[str, Callable[[], object]]
    ) -> dict[str, tuple[float, ...]]:
        for call in candidates.values():
            call()
        return {name: (ms.get(name.partition(" ")[0], 1.0),) * 7 for name in candidates}

    return moh_deploy.tune_within(
        demo.package,
        within=WITHIN,
        inputs=[demo.work_dir / "held-out.npz"],
        labels=demo.work_dir / "labels.npy",
        output=output,
        measure=measure,
        **options,  # type: ignore[arg-type]
    )


def test_int8_is_within_the_condition_and_chosen(digits_demo: DemoRun, tmp_path: Path):
    required_library()
    times = {"float32": 10.0, "float16": 9.0, "int8": 5.0, "int4": 11.0}
    report = searched(digits_demo, tmp_path / "fast", times, runtime="onnxruntime")
    assert report.precision == OnnxPackage.open(tmp_path / "fast").manifest.precision == "int8"
    (chosen,) = (item for item in report.tried if item.ending == "chosen")
    (top_1,) = chosen.quality.accuracy
    assert (top_1.samples, top_1.verdict) == (360, "passed")
    assert moh_deploy.verify(tmp_path / "fast").equal


def test_bfloat16_is_within_the_condition_and_chosen(
    digits_demo: DemoRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    install_extension(monkeypatch, tmp_path)
    times = {"float32": 10.0, "float16": 9.0, "int8": 8.0, "int4": 11.0, "bfloat16": 5.0}
    report = searched(digits_demo, tmp_path / "fast", times)
    assert (report.runtime, report.precision) == ("openvino", "bfloat16")
    assert moh_deploy.verify(tmp_path / "fast").equal
