"""Accuracy on real images: the package, one in float16, and packages that lose some of it."""

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

import moh_deploy
from moh_deploy.package import OnnxPackage, PackageWriter
from moh_deploy.system.npz import Array
from moh_deploy.validate.compare.parity_report import ParityReport
from tests.examples.digits_demo import DIGITS, DemoRun
from tests.nightly import nightly
from tests.true_manifest import finish_true

pytestmark = nightly

WIDE = """
tolerances: {float32: {relative: 1.0, reason: to see what accuracy alone says}}
accuracy: {top-1: {max_drop: 0.01, reason: one point}}
"""


def verify(demo: DemoRun, package: Path, policy: Path = DIGITS / "policy.yaml") -> ParityReport:
    assert demo.process.returncode == 0, demo.process.stderr
    held_out, labels = demo.work_dir / "held-out.npz", demo.work_dir / "labels.npy"
    return moh_deploy.verify(package, inputs=[held_out], labels=labels, policy=policy)


def with_noise(demo: DemoRun, output: Path, share: float) -> Path:
    """Write the package with noise on its matrices, of a share of their own deviation."""
    package, draw = OnnxPackage.open(demo.package), np.random.default_rng(0)
    model = onnx.load(package.model_path)
    for tensor in model.graph.initializer:
        weights: Array = numpy_helper.to_array(tensor)
        if weights.ndim == 2 and weights.dtype == np.float32:
            noise = draw.normal(0, share * weights.std(), weights.shape)
            changed = (weights + noise).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    with PackageWriter(output) as writer:
        onnx.save(model, writer.path("model.onnx"))
        finish_true(writer, package.manifest, package.vectors)
    return output


def test_package_keeps_the_accuracy_and_shows_which_heads_a_digit_uses(digits_demo: DemoRun):
    report = verify(digits_demo, digits_demo.package)
    (found,) = report.accuracy
    assert report.equal
    assert (found.samples, found.worse, found.improved, found.p_value) == (360, 0, 0, 1.0)
    assert found.package == found.reference > 0.2
    loads = report.statistics.class_loads
    assert [load.classes for load in loads] == [tuple("0123456789")] * 3
    of_first = loads[0].on, loads[0].tokens
    assert all(on[:2] == (tokens, tokens) for on, tokens in zip(*of_first, strict=True))


def test_float16_keeps_the_accuracy(digits_demo: DemoRun, tmp_path: Path):
    moh_deploy.precision(digits_demo.package, to="float16", output=tmp_path / "half")
    report = verify(digits_demo, tmp_path / "half")
    assert report.equal
    assert report.accuracy[0].worse + report.accuracy[0].improved <= 3


def test_wrong_weights_that_tolerances_let_pass_are_refused(digits_demo: DemoRun, tmp_path: Path):
    policy = tmp_path / "policy.yaml"
    policy.write_text(WIDE)
    report = verify(digits_demo, with_noise(digits_demo, tmp_path / "noisy", 1.0), policy)
    (found,) = report.accuracy
    assert found.verdict == "failed"
    assert found.worse > found.improved
    assert found.p_value is not None
    assert found.p_value < 1e-3
    assert report.reasons[0].startswith("top-1 fell from ")
    assert found.changed[0].reference_class == found.changed[0].label
    assert found.changed[0].package_class != found.changed[0].label
