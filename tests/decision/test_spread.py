"""Samples that are scored by a Ray cluster, and what of it can be told without one."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

import moh_deploy
from moh_deploy.decision import spread
from moh_deploy.decision.arm import Arm, OpenedArm
from moh_deploy.decision.score_arms import ArmBlock, ran_by
from moh_deploy.decision.spread import check_ray
from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.runtime.base import AS_IT_IS
from moh_deploy.runtime.models import PackageDir
from moh_deploy.system.bounded_json import to_json_text
from moh_deploy.system.npz import write_npz
from tests.api.test_compare import Meter, fresh
from tests.labelled_package import right_labels, samples, write_classifier
from tests.nightly import nightly

HERE = Path(__file__)
# A metric whose last bits show where it was computed otherwise.
MARGIN = """\
def margin(outputs, labels):
    [logits] = outputs.values()
    return logits.max(axis=1) - logits.mean(axis=1)
"""


def write_case(folder: Path) -> Path:
    """Write two packages, samples of which some are lost, and a plan of many small runs."""
    write_classifier(folder / "right")
    write_classifier(folder / "wrong", bias=1e-5)
    one = samples(500)
    write_npz(folder / "x.npz", one.inputs)
    np.save(folder / "labels.npy", right_labels(one))
    (folder / "code").mkdir()
    (folder / "code" / "spread_margin.py").write_text(MARGIN)
    plan = {
        "goal": "The same wherever it is scored",
        "reference": "right",
        "arms": {"right": {"path": "right"}, "wrong": {"path": "wrong"}},
        "inputs": ["x.npz"],
        "labels": "labels.npy",
        "quality": [
            {"metric": "top-1", "may_lose": 0.01},
            {"metric": "spread_margin:margin", "better": "higher", "may_lose": 0.1},
        ],
        "code_dirs": ["code"],
        "latency": {"at_least": 0.1},
        "router_overhead": False,
        "batch_size": 4,
        "threads": 1,
    }
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(plan, sort_keys=False))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A plan and its files; the test is skipped where Ray would listen on other addresses, too."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed")
    if subprocess.run([*_OWN_NAMESPACES, "ip link set lo up"], check=False).returncode:
        pytest.skip("a network namespace of its own cannot be made")
    write_case(tmp_path)
    return tmp_path


# Whatever Ray started ends with the first process of the namespaces.
_OWN_NAMESPACES = ["unshare", "--map-root-user", "--net", "--mount", "--pid", "--fork"]
_OWN_NAMESPACES += ["--kill-child", "--mount-proc", "sh", "-c"]


def on_ray(module: str, folder: Path, *arguments: str) -> str:
    """Run a script in namespaces of its own, and return what it printed."""
    # Sockets of Ray have long names, and a path of one is of 107 characters at most.
    place = f"/tmp/ray-{os.getpid()}"
    words = " ".join(f"'{one}'" for one in (folder, place, *arguments))
    script = f"'{sys.executable}' -m tests.decision.{module} {words}"
    # Nothing else is in its network, so nothing has to prove who it is.
    settings = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    try:
        done = subprocess.run(
            [*_OWN_NAMESPACES, f"ip link set lo up && exec {script}"],
            cwd=HERE.parents[2],
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )
    finally:
        shutil.rmtree(place, ignore_errors=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def assert_as_alone(folder: Path) -> None:
    """Check that no bit of the report, or of what was kept, is another than on one machine."""
    alone = moh_deploy.compare(
        plan=folder / "plan.yaml",
        trust_code=True,
        keep_scores=folder / "alone",
        measure=Meter((1.0, 0.5)),
        measure_fresh=fresh,
    )
    assert (folder / "spread.json").read_text() == to_json_text(alone.to_json())
    kept, spread_out = (
        {one.name: one.read_bytes() for one in (folder / name).glob("*.npz")}
        for name in ("alone", "spread")
    )
    assert len(kept) > 20
    assert spread_out == kept


@nightly
def test_a_lost_worker_changes_no_bit_of_the_report(folder: Path):
    assert "killed 1" in on_ray("ray_compare", folder)
    assert_as_alone(folder)


@nightly
def test_two_nodes_of_which_one_loses_a_worker_make_the_same_report(folder: Path):
    """The nodes have working directories of their own, and no files but those of the plan."""
    assert "killed 1, worked on 2 nodes" in on_ray("ray_nodes", folder, "all")
    assert_as_alone(folder)


@nightly
@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("hidden", r"machine '.*' of the cluster has no /.*model\.onnx"),
        ("bare", r"a machine of the cluster has no moh-deploy, or another version of it"),
    ],
    ids=["no files", "no package"],
)
def test_node_that_lacks_what_it_takes_is_refused_in_a_sentence(
    folder: Path, second: str, message: str
):
    said = on_ray("ray_nodes", folder, second)
    assert re.search(rf"^refused: arm '(right|wrong)' cannot run: {message}", said, re.MULTILINE)


def test_what_cannot_be_spread_is_refused_first(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(spread.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match="Ray is not installed"):
        check_ray(1)
    monkeypatch.setattr(spread.importlib.util, "find_spec", lambda name: object())
    check_ray(1)
    with pytest.raises(ConfigError, match="the plan has no `threads`"):
        check_ray(None)


def test_machine_that_runs_an_arm_otherwise_is_refused(tmp_path: Path):
    package = write_classifier(tmp_path / "package")
    model = PackageDir(package.root)
    with model.open() as runner:
        opened = OpenedArm(Arm("a", model.name, model, AS_IT_IS), runner, package.manifest)
        spread._check_same(opened, ran_by(opened))
        with pytest.raises(BackendError, match="arm 'a' cannot run: a machine of the cluster"):
            spread._check_same(opened, f"{ran_by(opened)}, on another processor")


@pytest.fixture
def task(tmp_path: Path) -> spread._Task:
    """A block of a package, as it is sent."""
    package = write_classifier(tmp_path / "package")
    model = PackageDir(package.root)
    with model.open() as runner:
        opened = OpenedArm(Arm("a", model.name, model, AS_IT_IS), runner, package.manifest)
        found = spread._task(ArmBlock(opened, 0, [], [], -100))
    assert found is not None
    return found


def test_machine_that_lacks_files_or_has_another_version_is_refused(
    task: spread._Task, tmp_path: Path
):
    spread._check_reachable(task)
    with pytest.raises(
        BackendError, match=r"arm 'a' cannot run: machine '.+' of the cluster has no"
    ):
        spread._check_reachable(replace(task, folder="/never/there"))
    (tmp_path / "package" / "model.onnx").unlink()
    with pytest.raises(BackendError, match=r"of the cluster has no .*/model\.onnx\.") as refused:
        spread._check_reachable(task)
    assert "by the same paths" in str(refused.value.hint)
    write_classifier(tmp_path / "other")
    (tmp_path / "other" / "model.onnx").rename(tmp_path / "package" / "model.onnx")
    with pytest.raises(BackendError, match=r"has moh-deploy .*, expected 0\.0 as on this one"):
        spread._check_reachable(replace(task, version="0.0"))


class FakeRay:
    """Stands for the module, as far as failures are concerned."""

    class exceptions:
        class RayError(Exception):
            pass

        class RayTaskError(RayError):
            def __init__(self, cause: Exception) -> None:
                self.cause = cause


def connect(monkeypatch: pytest.MonkeyPatch, task: spread._Task, ray: object, threads: int) -> None:
    """Run a block on what stands for the module."""
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(spread, "_task", lambda block: task)
    block = SimpleNamespace(key=("a", 0))
    list(spread.RayBlocks("auto", threads)([block]))  # type: ignore[list-item]


def test_block_that_no_machine_takes_is_refused(
    task: spread._Task, monkeypatch: pytest.MonkeyPatch
):
    found = [
        {"Alive": True, "Resources": {"CPU": 4.0}},
        {"Alive": True, "Resources": {}},
        {"Alive": False, "Resources": {"CPU": 8.0}},
    ]
    ray = SimpleNamespace(is_initialized=lambda: True, nodes=lambda: found)
    spread._check_cpus(ray, 4, "auto")
    message = (
        r"a block takes 5 threads, and no machine of the Ray cluster at auto has more than 4 C"
    )
    with pytest.raises(BackendError, match=message):
        connect(monkeypatch, task, ray, 5)


def test_cluster_of_another_ray_is_refused_in_a_sentence(
    task: spread._Task, monkeypatch: pytest.MonkeyPatch
):
    def init(**options: object) -> None:
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 1.0\n")

    ray = SimpleNamespace(is_initialized=lambda: False, init=init)
    with pytest.raises(BackendError) as refused:
        connect(monkeypatch, task, ray, 1)
    assert refused.value.message == (
        "the Ray cluster at auto cannot be used: Version mismatch: The cluster was started with:"
        " Ray: 1.0"
    )


def test_metric_without_a_name_of_its_own_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plan = write_case(tmp_path)
    code = "spread_margin = lambda outputs, labels: labels == 0\nmargin = spread_margin\n"
    (tmp_path / "code" / "spread_nameless.py").write_text(code)
    plan.write_text(plan.read_text().replace("spread_margin:", "spread_nameless:"))
    monkeypatch.setattr(spread.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ConfigError, match="a metric cannot be sent to other machines: ") as refused:
        moh_deploy.compare(plan=plan, trust_code=True, ray="auto", keep_scores=tmp_path / "kept")
    assert "a name of its own" in str(refused.value.hint)


@pytest.mark.parametrize(
    "cause",
    [
        ModuleNotFoundError("No module named 'scores'"),
        RuntimeError(
            "The remote function failed to import on the worker. This may be because of\n\n"
            "Traceback:\n  File x\nModuleNotFoundError: No module named 'scores'\n"
        ),
    ],
    ids=["of a metric", "of this package"],
)
def test_machine_that_cannot_import_is_refused_in_a_sentence(cause: Exception):
    block = SimpleNamespace(key=("a", 0))
    with pytest.raises(BackendError) as refused, spread._named_failures(FakeRay, block):  # type: ignore[arg-type]
        raise FakeRay.exceptions.RayTaskError(cause)
    assert refused.value.message.startswith("arm 'a' cannot run: a machine of the cluster has no")
    assert refused.value.message.endswith("No module named 'scores'.")
    ours = ConfigError("what was wrong")
    with pytest.raises(ConfigError, match="what was wrong"), spread._named_failures(FakeRay, block):  # type: ignore[arg-type]
        raise FakeRay.exceptions.RayTaskError(ours)
