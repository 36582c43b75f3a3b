"""Arms that are made of a package, each beside the one that it is made of."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from moh_deploy.api.made_arms import find_arms
from moh_deploy.decision.arm import Arm
from moh_deploy.decision.plan import PlanFile, plan_of
from moh_deploy.errors import BackendError
from moh_deploy.graph.choose_layers import write_choices
from moh_deploy.package import OnnxPackage
from moh_deploy.system.progress import SilentProgress
from tests.grouped_package import HEADS, write_grouped

MADE: dict[str, dict[str, object]] = {
    "open": {"all_heads_open": True},
    "fewer": {"top_k": 1},
    "all": {"top_k": "all"},
    "pruned": {"prune": {"keep": "50%", "by": "gate"}},
    "half": {"precision": "float16"},
    "fed": {"fixed_routing": True},
}


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Arm]:
    root = tmp_path_factory.mktemp("made")
    write_grouped(root / "package")
    document = {
        "goal": "See them all",
        "reference": "moh",
        "arms": {
            "moh": {"path": "package"},
            **{name: {"made": one} for name, one in MADE.items()},
        },
        "latency": {"at_least": 0.1},
    }
    found = find_arms(PlanFile(plan_of(document, "plan.yaml"), root, "plan.yaml"), None)
    (root / "scratch").mkdir()
    quiet = SilentProgress()
    given = found.given(quiet)
    return {one.name: one for one in found.made(given, root / "scratch", quiet)}


def package_of(arm: Arm) -> OnnxPackage:
    assert arm.package is not None
    return arm.package


def test_arms_say_what_they_are(arms: dict[str, Arm]):
    assert {name: one.kind for name, one in arms.items() if name != "moh"} == {
        "open": "made of 'moh': all heads open, in standard operators",
        "fewer": "made of 'moh': 1 routed heads for each token",
        "all": "made of 'moh': all heads open, on its kernels",
        "pruned": "made of 'moh': the same heads for every token, 50% by gate",
        "half": "made of 'moh': float16",
        "fed": "made of 'moh': routing fed",
    }
    # What a routed arm has to be worth more than, and what cannot be served at all.
    assert {name: one.chooses for name, one in arms.items()} == {
        "moh": True,
        "open": False,
        "fewer": True,
        "all": False,
        "pruned": False,
        "half": True,
        "fed": None,
    }
    assert [name for name, one in arms.items() if one.dense] == ["open"]
    assert [name for name, one in arms.items() if one.is_bound] == ["fed"]


def test_made_packages_are_what_they_say(arms: dict[str, Arm]):
    layers = {name: package_of(arms[name]).manifest.layers[0] for name in MADE if name != "fed"}
    assert (layers["open"].top_k, layers["open"].choice) == (HEADS - 1, "dense")
    # The same heads as the one before, on what runs the package itself.
    of_package = package_of(arms["moh"]).manifest.layers[0].choice
    assert (layers["all"].top_k, layers["all"].choice) == (HEADS - 1, of_package)
    assert of_package != "dense"
    assert layers["fewer"].top_k == 1
    assert layers["pruned"].num_heads == HEADS // 2
    assert package_of(arms["half"]).manifest.precision == "float16"


def test_every_made_arm_runs_on_the_inputs_of_the_package(arms: dict[str, Arm]):
    run = package_of(arms["moh"]).vectors[0]
    for one in arms.values():
        with one.model.open(one.variant) as runner:
            assert runner.run(run.inputs)["y"].shape == run.outputs["y"].shape


def test_package_runs_in_what_it_was_tuned_for_unless_the_plan_says_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("moh_deploy.runtime.models.runtime_name_of", str)
    package = write_grouped(tmp_path / "plain")
    write_choices(package, package.manifest.layers, tmp_path / "tuned", runtime="openvino")
    document = {
        "goal": "See what runs them",
        "reference": "plain",
        "arms": {
            "plain": {"path": "plain"},
            "tuned": {"path": "tuned"},
            "otherwise": {"path": "tuned", "runtime": "onnxruntime"},
        },
        "latency": {"at_least": 0.1},
    }
    found = find_arms(PlanFile(plan_of(document, "plan.yaml"), tmp_path, "plan.yaml"), None)
    assert {one.name: one.variant.runtime for one in found.given(SilentProgress())} == {
        "plain": "onnxruntime",
        "tuned": "openvino",
        "otherwise": "onnxruntime",
    }


def test_runtime_that_is_not_installed_is_refused_as_the_plan_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def absent(runtime: str) -> str:
        raise BackendError(f"{runtime} is not installed.")

    monkeypatch.setattr("moh_deploy.api.made_arms.runtime_name_of", absent)
    write_grouped(tmp_path / "package")
    arms = {
        "moh": {"path": "package"},
        "int8": {"made": {"precision": "int8"}, "runtime": "openvino"},
    }
    document = {"goal": "g", "reference": "moh", "arms": arms, "latency": {"at_least": 0.1}}
    with pytest.raises(BackendError, match="arm 'int8' cannot run: openvino is not installed"):
        find_arms(PlanFile(plan_of(document, "plan.yaml"), tmp_path, "plan.yaml"), None)


def test_made_is_of_the_first_package_where_the_reference_is_none(tmp_path: Path):
    package = write_grouped(tmp_path / "moh")
    shutil.copyfile(package.model_path, tmp_path / "dense.onnx")
    document = {
        "goal": "See what it is made of",
        "reference": "dense",
        "arms": {
            "dense": {"path": "dense.onnx"},
            "moh": {"path": "moh"},
            "open": {"made": {"all_heads_open": True}},
        },
        "latency": {"at_least": 0.1},
    }
    found = find_arms(PlanFile(plan_of(document, "plan.yaml"), tmp_path, "plan.yaml"), None)
    (tmp_path / "scratch").mkdir()
    quiet = SilentProgress()
    made = {one.name: one for one in found.made(found.given(quiet), tmp_path / "scratch", quiet)}
    assert made["open"].kind.startswith("made of 'moh'")


def test_made_arm_that_is_called_dense_chooses_no_heads(tmp_path: Path):
    write_grouped(tmp_path / "moh")
    arms = {
        "moh": {"path": "moh"},
        "half": {"made": {"precision": "float16"}, "dense": True},
    }
    document = {"goal": "g", "reference": "moh", "arms": arms, "latency": {"at_least": 0.1}}
    found = find_arms(PlanFile(plan_of(document, "plan.yaml"), tmp_path, "plan.yaml"), None)
    quiet = SilentProgress()
    (tmp_path / "scratch").mkdir()
    _, half = found.made(found.given(quiet), tmp_path / "scratch", quiet)
    assert (half.dense, half.chooses) == (True, False)
