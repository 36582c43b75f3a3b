"""Alternatives that are made of a package, each beside the one that it is made of."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

import moh_deploy
from moh_deploy.decision.alternative import Alternative
from moh_deploy.decision.made_alternatives import FoundAlternatives, find_alternatives
from moh_deploy.decision.plan import PlanFile, plan_of
from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.graph.choose_layers import write_choices
from moh_deploy.package import OnnxPackage
from moh_deploy.system.bounded_file import sha256_of
from moh_deploy.system.npz import write_npz
from moh_deploy.system.progress import SilentProgress
from tests.fakes import Fakes, fakes
from tests.grouped_package import HEADS, write_grouped
from tests.handmade_package import vectors, write_package
from tests.nightly import nightly
from tests.report.json_schema import assert_of_form
from tests.runtime.tensorrt.engines import MANIFEST, python, simulate_gpu, write_engine
from tests.runtime.tensorrt.test_engine import needs_polygraphy
from tests.runtime.tensorrt.test_engine_runs import without_driver

MADE: dict[str, dict[str, object]] = {
    "open": {"all_heads_open": True},
    "fewer": {"top_k": 1},
    "all": {"top_k": "all"},
    "pruned": {"prune": {"keep": "50%", "by": "gate"}},
    "half": {"precision": "float16"},
    "fed": {"fixed_routing": True},
}


def found_alternatives(root: Path, alternatives: dict[str, dict[str, object]]) -> FoundAlternatives:
    """Return the alternatives of a plan whose reference is the first of them."""
    latency = {"at_least": 0.1}
    document = {
        "goal": "See them",
        "reference": next(iter(alternatives)),
        "arms": alternatives,
        "latency": latency,
    }
    return find_alternatives(PlanFile(plan_of(document, "plan.yaml"), root, "plan.yaml"), None)


def made_alternatives(
    root: Path, alternatives: dict[str, dict[str, object]]
) -> dict[str, Alternative]:
    found, quiet = found_alternatives(root, alternatives), SilentProgress()
    (root / "scratch").mkdir()
    return {
        alternative.name: alternative
        for alternative in found.made(found.given(quiet), root / "scratch", quiet)
    }


@pytest.fixture(scope="module")
def alternatives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Alternative]:
    root = tmp_path_factory.mktemp("made")
    write_grouped(root / "package")
    made = {name: {"made": how} for name, how in MADE.items()}
    return made_alternatives(root, {"moh": {"path": "package"}, **made})


def package_of(alternative: Alternative) -> OnnxPackage:
    assert alternative.package is not None
    return alternative.package


def test_alternatives_say_what_they_are(alternatives: dict[str, Alternative]):
    assert {
        name: alternative.kind for name, alternative in alternatives.items() if name != "moh"
    } == {
        "open": "made of 'moh': all heads open, in standard operators",
        "fewer": "made of 'moh': 1 routed heads for each token",
        "all": "made of 'moh': all heads open, on its kernels",
        "pruned": "made of 'moh': the same heads for every token, 50% by gate",
        "half": "made of 'moh': float16",
        "fed": "made of 'moh': routing fed",
    }
    # What a routed alternative has to be worth more than, and what cannot be served at all.
    assert {name: alternative.chooses for name, alternative in alternatives.items()} == {
        "moh": True,
        "open": False,
        "fewer": True,
        "all": False,
        "pruned": False,
        "half": True,
        "fed": None,
    }
    assert [name for name, alternative in alternatives.items() if alternative.dense] == ["open"]
    assert [name for name, alternative in alternatives.items() if alternative.is_bound] == ["fed"]


def test_made_packages_are_what_they_say(alternatives: dict[str, Alternative]):
    layers = {
        name: package_of(alternatives[name]).manifest.layers[0] for name in MADE if name != "fed"
    }
    assert (layers["open"].top_k, layers["open"].choice) == (HEADS - 1, "dense")
    # The same heads as the one before, on what runs the package itself.
    of_package = package_of(alternatives["moh"]).manifest.layers[0].choice
    assert (layers["all"].top_k, layers["all"].choice) == (HEADS - 1, of_package)
    assert of_package != "dense"
    assert layers["fewer"].top_k == 1
    assert layers["pruned"].num_heads == HEADS // 2
    assert package_of(alternatives["half"]).manifest.precision == "float16"


def test_made_alternatives_run_on_the_inputs_of_the_package(
    alternatives: dict[str, Alternative],
):
    run = package_of(alternatives["moh"]).vectors[0]
    for alternative in alternatives.values():
        with alternative.model.open(alternative.variant) as runner:
            assert runner.run(run.inputs)["y"].shape == run.outputs["y"].shape


def test_package_runs_in_what_it_was_tuned_for_unless_the_plan_says_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("moh_deploy.runtime.models.runtime_name_of", str)
    package = write_grouped(tmp_path / "plain")
    write_choices(package, package.manifest.layers, tmp_path / "tuned", runtime="openvino")
    alternatives = {name: {"path": name} for name in ("plain", "tuned")}
    alternatives["otherwise"] = {"path": "tuned", "runtime": "onnxruntime"}
    found = found_alternatives(tmp_path, alternatives)
    assert {
        alternative.name: alternative.variant.runtime
        for alternative in found.given(SilentProgress())
    } == {
        "plain": "onnxruntime",
        "tuned": "openvino",
        "otherwise": "onnxruntime",
    }


def test_runtime_that_is_not_installed_is_refused_as_the_plan_is_read(tmp_path: Path, monkeypatch):
    def absent(runtime: str) -> str:
        raise BackendError(f"{runtime} is not installed.")

    monkeypatch.setattr("moh_deploy.decision.made_alternatives.runtime_name_of", absent)
    write_grouped(tmp_path / "package")
    alternatives = {
        "moh": {"path": "package"},
        "int8": {"made": {"precision": "int8"}, "runtime": "openvino"},
    }
    with pytest.raises(
        BackendError, match="alternative 'int8' cannot run: openvino is not installed"
    ):
        found_alternatives(tmp_path, alternatives)


def test_made_is_of_the_first_package_where_the_reference_is_none(tmp_path: Path):
    package = write_grouped(tmp_path / "moh")
    shutil.copyfile(package.model_path, tmp_path / "dense.onnx")
    given = {"dense": {"path": "dense.onnx"}, "moh": {"path": "moh"}}
    made = made_alternatives(tmp_path, {**given, "open": {"made": {"all_heads_open": True}}})
    assert made["open"].kind.startswith("made of 'moh'")


def test_made_alternative_that_is_called_dense_chooses_no_heads(tmp_path: Path):
    write_grouped(tmp_path / "moh")
    called_dense = {"made": {"precision": "float16"}, "dense": True}
    half = made_alternatives(tmp_path, {"moh": {"path": "moh"}, "half": called_dense})["half"]
    assert (half.dense, half.chooses) == (True, False)


# Engines as alternatives of `compare`: refused for real where there is no GPU, run on a fake
# runtime.


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
def test_without_a_gpu_an_engine_is_refused_before_any_other_alternative_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("an alternative was made")

    monkeypatch.setattr("moh_deploy.decision.made_alternatives.write_precision", never)
    int8 = {"made": {"precision": "int8"}, "of": "package"}
    alternatives = {"package": {"path": "package"}, "int8": int8, "engine": {"path": "engine"}}
    with pytest.raises(BackendError) as refused:
        moh_deploy.compare(plan=write_case(tmp_path, arms=alternatives), trust_code=True)
    said = f"alternative 'engine' cannot run: {tmp_path}/engine cannot run here: no NVIDIA driver"
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
    assert [alternative["quality"][0]["value"] for alternative in report["arms"]] == [
        1.0,
        1.0,
        pytest.approx(0),
    ]
    # What the fake runtime takes is no matter, and is measured in the same rounds.
    assert engine["latency"][0]["rounds"] == package["latency"][0]["rounds"]
    assert engine["memory_mib"] > 0
    assert (wrong["verdict"], wrong["kind"]) == ("loss", f"engine {tmp_path}/wrong")
    assert engine["not_measured"]["routing"] == "gates of its heads cannot be read here"


def with_engine(**run: str) -> dict[str, object]:
    return {"arms": {"package": {"path": "package"}, "engine": {"path": "engine", **run}}}


@nightly
@needs_polygraphy
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": [{"batch": 2, "seq": 50}]}, "engine was built for batch=1..2..4"),
        ({"batch_size": 64}, "engine was built for batch=1..2..4"),
        (with_engine(kernels="off"), "was decided when it was built"),
        (with_engine(runtime="openvino"), "alternative 'engine' cannot run: "),
    ],
    ids=["sizes", "batch", "kernels", "runtime"],
)
def test_engine_that_does_not_fit_the_plan_is_named(
    fakes: Fakes, tmp_path: Path, change: dict[str, object], message: str
):
    simulate_gpu(fakes)
    done = compare(write_case(tmp_path, **change))
    assert done.returncode in (2, 6), done.stderr
    assert "alternative 'engine' cannot run: " in done.stderr
    assert message in done.stderr
