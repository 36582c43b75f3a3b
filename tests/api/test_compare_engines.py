"""Engines as arms of `compare`: refused for real where there is no GPU, run on a fake runtime."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

import moh_deploy
from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.system.bounded_file import sha256_of
from moh_deploy.system.npz import write_npz
from tests.fakes import Fakes, fakes
from tests.handmade_package import vectors, write_package
from tests.nightly import nightly
from tests.report.json_schema import assert_of_form
from tests.runtime.tensorrt.engines import MANIFEST, python, simulate_gpu, write_engine
from tests.runtime.tensorrt.test_engine import needs_polygraphy
from tests.runtime.tensorrt.test_engine_runs import without_driver

__all__ = ["fakes", "without_driver"]

SAMPLES, SEQ = 200, 3


def write_case(folder: Path, **changes: object) -> Path:
    """Write a package that computes y = x, engines of y = 2x and y = -x, and a plan of them all."""
    package = write_package(folder / "package", with_layer=False, sets=(vectors(with_layer=False),))
    sha256 = sha256_of(package.root / "manifest.json")
    manifest = replace(MANIFEST, layers=(), package_sha256=sha256)
    write_engine(folder / "engine", manifest, scale=2.0)
    write_engine(folder / "wrong", manifest, scale=-1.0)
    x = np.random.default_rng(0).standard_normal((SAMPLES, SEQ, 8)).astype(np.float32)
    write_npz(folder / "x.npz", {"x": x})
    np.save(folder / "labels.npy", x.argmax(-1))
    plan = {
        "goal": "Serve from the GPU",
        "reference": "package",
        "arms": {name: {"path": name} for name in ("package", "engine", "wrong")},
        "inputs": ["x.npz"],
        "labels": "labels.npy",
        "quality": {"metric": "top-1", "may_lose": 0.05},
        "latency": {"at_least": -9.0},
        "sizes": [{"batch": 2, "seq": SEQ}],
        "seconds": 1.0,
        "threads": 1,
        "batch_size": 4,
        **changes,
    }
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(plan, sort_keys=False))
    return path


def compare(plan: Path) -> subprocess.CompletedProcess[str]:
    arguments = ("compare", "--plan", plan, "--trust-code", "--json")
    return python("from moh_deploy.cli import main; main()", *arguments)


@pytest.mark.usefixtures("without_driver")
def test_without_a_gpu_an_engine_is_refused_before_any_other_arm_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("an arm was made")

    monkeypatch.setattr("moh_deploy.api.made_arms.precision", never)
    int8 = {"made": {"precision": "int8"}, "of": "package"}
    arms = {"package": {"path": "package"}, "int8": int8, "engine": {"path": "engine"}}
    with pytest.raises(BackendError) as refused:
        moh_deploy.compare(plan=write_case(tmp_path, arms=arms), trust_code=True)
    said = f"arm 'engine' cannot run: {tmp_path}/engine cannot run here: no NVIDIA driver"
    assert refused.value.message.startswith(said)
    assert "moh-deploy doctor" in str(refused.value.hint)


def test_engine_that_a_plan_names_needs_trust(tmp_path: Path):
    """Its plugin library is native code, and TensorRT may load code from an engine."""
    with pytest.raises(ConfigError, match=r"plan\.yaml: arms\.engine\.path is 'engine', and using"):
        moh_deploy.compare(plan=write_case(tmp_path))


@nightly
@needs_polygraphy
def test_engines_take_turns_with_their_package_and_are_judged_like_it(fakes: Fakes, tmp_path: Path):
    simulate_gpu(fakes)
    done = compare(write_case(tmp_path))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert_of_form("compare", report)
    package, engine, wrong = report["arms"]
    assert engine["runtime"] == "TensorRT 10.9.0.34 on a GPU"
    assert package["runtime"].startswith("ONNX Runtime ")
    assert [one["quality"][0]["value"] for one in report["arms"]] == [1.0, 1.0, pytest.approx(0)]
    # What the fake runtime takes is no matter, and is measured in the same rounds.
    assert engine["latency"][0]["rounds"] == package["latency"][0]["rounds"]
    assert engine["memory_mib"] > 0
    assert (wrong["verdict"], wrong["kind"]) == ("loss", f"engine {tmp_path}/wrong")
    assert engine["not_measured"]["routing"] == "gates of its heads cannot be read here"


@nightly
@needs_polygraphy
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": [{"batch": 2, "seq": 50}]}, "engine was built for batch=1..2..4"),
        ({"batch_size": 64}, "engine was built for batch=1..2..4"),
        (
            {
                "arms": {
                    "package": {"path": "package"},
                    "engine": {"path": "engine", "kernels": "off"},
                }
            },
            "was decided when it was built",
        ),
        (
            {
                "arms": {
                    "package": {"path": "package"},
                    "engine": {"path": "engine", "runtime": "openvino"},
                }
            },
            "arm 'engine' cannot run: ",
        ),
    ],
    ids=["sizes", "batch", "kernels", "runtime"],
)
def test_engine_that_does_not_fit_the_plan_is_named(
    fakes: Fakes, tmp_path: Path, change: dict[str, object], message: str
):
    simulate_gpu(fakes)
    done = compare(write_case(tmp_path, **change))
    assert done.returncode in (2, 6), done.stderr
    assert "arm 'engine' cannot run: " in done.stderr
    assert message in done.stderr
