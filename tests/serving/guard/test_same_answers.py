import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import moh_deploy
from moh_deploy.errors import ConfigError
from moh_deploy.package import OnnxPackage, TensorInfo
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.models import PackageDir
from moh_deploy.serving.guard.same_answers import BackgroundJobs, Shadow, require_same_interface
from moh_deploy.serving.served_model import ServedModel
from tests.handmade_package import MANIFEST, vectors, write_package
from tests.nightly import sampled
from tests.routed_package import Fault, write_routed


@pytest.mark.parametrize(
    "changed",
    [
        TensorInfo("z", "float32", ("batch", "seq", 8)),
        TensorInfo("x", "float16", ("batch", "seq", 8)),
        TensorInfo("x", "float32", ("batch", 8)),
    ],
)
def test_names_dtypes_and_ranks_have_to_agree_and_dimensions_need_not(changed: TensorInfo):
    other = replace(MANIFEST, inputs=(TensorInfo("x", "float32", ("n", 3, 8)),))
    require_same_interface("it", MANIFEST, other)
    with pytest.raises(ConfigError, match=r"it has the inputs \[.*\], expected \[\('x', 'float32'"):
        require_same_interface("it", MANIFEST, replace(MANIFEST, inputs=(changed,)))
    with pytest.raises(ConfigError, match="it has the outputs"):
        require_same_interface("it", MANIFEST, replace(MANIFEST, outputs=(changed,)))


def test_jobs_are_done_in_their_order():
    aside, done = BackgroundJobs("test", 10), []
    for number in range(5):
        assert aside.submit(lambda number=number: done.append(number))
    aside.wait()
    assert done == [0, 1, 2, 3, 4]
    aside.close()


def test_a_full_queue_drops_and_counts():
    aside, go, done = BackgroundJobs("test", 2), threading.Event(), []
    begun = threading.Event()
    aside.submit(lambda: (begun.set(), go.wait(10)))
    begun.wait(10)
    taken = [aside.submit(lambda: done.append(1)) for _ in range(5)]
    assert taken == [True, True, False, False, False]
    assert aside.dropped == 3
    go.set()
    aside.wait()
    assert done == [1, 1]
    aside.close()


def test_a_job_that_raises_is_counted_and_the_next_goes_on():
    aside, done = BackgroundJobs("test"), []
    aside.submit(lambda: 1 / 0)
    aside.submit(lambda: done.append(1))
    aside.wait()
    assert (done, aside.failed) == ([1], 1)
    aside.close()


def test_close_ends_the_thread_and_takes_no_more():
    aside, done = BackgroundJobs("test"), []
    aside.close()
    assert not aside.submit(lambda: done.append(1))
    assert not [item for item in threading.enumerate() if item.name == "test"]


def observed(package: OnnxPackage, shadow: Path, share: float = 1.0) -> tuple[ServedModel, Shadow]:
    model = PackageDir(package.root)
    beside = Shadow(model, shadow, share, Variant(threads=1))
    variant = Variant(kernels="off", threads=1, extra_outputs=beside.inner)
    return ServedModel(model, model.open(variant), (beside,)), beside


@sampled(3)
@pytest.mark.parametrize(
    ("fault", "tied", "outcome"),
    [
        (None, False, "equal"),
        # Its routers are plain operators, whose scores nobody knows: a tie explains nothing.
        ("other tie order", True, "differing"),
        ("stale weights", False, "differing"),
        ("top_k off by one", False, "differing"),
    ],
)
def test_a_shadow_is_judged_by_the_rules_of_verify(
    tmp_path: Path, fault: Fault | None, tied: bool, outcome: str
):
    package = write_routed(tmp_path / "package", tied=tied)
    write_routed(tmp_path / "shadow", fault, tied=tied)
    served, beside = observed(package, tmp_path / "shadow")
    recorded = package.vectors[0]
    for _ in range(2):
        y = served.answer(recorded.inputs).outputs["y"]
        np.testing.assert_allclose(y, recorded.outputs["y"], rtol=1e-4, atol=1e-5)
        beside.wait()
    assert {name: count for name, count in beside.counts.items() if count} == {outcome: 2}
    assert bool(beside.reasons) == (outcome == "differing")
    served.close()


def test_only_the_share_is_run(tmp_path: Path):
    package = write_package(tmp_path / "package")
    served, beside = observed(package, package.root, share=0.25)
    for _ in range(200):
        served.answer(vectors().inputs)
        beside.wait()
    assert 25 < beside.counts["equal"] < 75
    served.close()


def test_what_comes_while_the_shadow_is_behind_is_dropped_and_counted(tmp_path: Path):
    package = write_package(tmp_path / "package")
    served, beside = observed(package, package.root)
    for _ in range(200):
        served.answer(vectors().inputs)
    beside.wait()
    counted = {dict(s.labels)["outcome"]: s.value for s in beside.families()[0].samples}
    assert counted["equal"] + counted["dropped"] == 200
    assert counted["dropped"] > 0
    served.close()


def test_a_shadow_without_the_same_layers_is_compared_by_outputs(tmp_path: Path):
    package = write_package(tmp_path / "package")
    write_package(tmp_path / "plain", with_layer=False)
    served, beside = observed(package, tmp_path / "plain")
    assert beside.inner == ()
    served.answer(vectors().inputs)
    beside.wait()
    assert beside.counts["differing"] == 1
    served.close()


def test_a_shadow_that_fails_is_counted_and_harms_no_answer(tmp_path: Path, monkeypatch):
    package = write_routed(tmp_path / "package")
    write_package(tmp_path / "shadow")  # of another width
    served, beside = observed(package, tmp_path / "shadow")
    assert served.answer(package.vectors[0].inputs).outputs["y"].shape == (3, 7, 24)
    beside.wait()
    assert beside.counts["failed"] == 1
    assert tuple(beside.reasons) == (
        "input 'x' is float32[3, 7, 24], expected float32[batch, seq, 8]: axis 2 is fixed at 8, got"
        " 24.",
    )
    served.close()


def test_the_largest_error_stays_nan(tmp_path: Path):
    package = write_package(tmp_path / "package")
    served, beside = observed(package, package.root)
    served.answer({"x": np.full_like(vectors().inputs["x"], np.nan)})
    beside.wait()
    assert np.isnan(beside.max_abs_error)
    served.answer(vectors().inputs)
    beside.wait()
    assert sum(beside.counts.values()) == 2
    assert np.isnan(beside.max_abs_error)
    served.close()


@pytest.mark.parametrize("share", [0, 1.5, -1])
def test_a_share_is_above_0_and_at_most_1(tmp_path: Path, share: float):
    package = write_package(tmp_path / "package")
    with pytest.raises(ConfigError, match="expected above 0, at most 1"):
        Shadow(PackageDir(package.root), package.root, share, Variant(threads=1))


def test_a_shadow_in_few_bits_that_is_within_tolerance_counts_as_equal(tmp_path: Path):
    write_routed(tmp_path / "float32")
    moh_deploy.precision(tmp_path / "float32", to="int8", output=tmp_path / "int8")
    int8 = OnnxPackage.open(tmp_path / "int8")
    served, shadow = observed(int8, int8.root)
    served.answer(int8.vectors[0].inputs)
    shadow.wait()
    assert shadow.counts["equal"] == 1
