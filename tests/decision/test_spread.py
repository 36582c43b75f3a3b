"""Samples that are scored by a Ray cluster, and what of it can be told without one."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

import moh_deploy
from moh_deploy.decision import spread
from moh_deploy.decision.arm import Arm, OpenedArm
from moh_deploy.decision.score_blocks import ran_by
from moh_deploy.decision.spread import check_ray
from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.runtime.base import AS_IT_IS
from moh_deploy.runtime.models import PackageDir
from moh_deploy.system.json_text import to_json_text
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


@nightly
def test_a_lost_worker_changes_no_bit_of_the_report(tmp_path: Path):
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed")
    own_network = ["unshare", "--map-root-user", "--net", "sh", "-c"]
    if subprocess.run([*own_network, "ip link set lo up"], check=False).returncode:
        pytest.skip("a network namespace of its own cannot be made")
    plan = write_case(tmp_path)
    alone = moh_deploy.compare(
        plan=plan,
        keep_scores=tmp_path / "alone",
        measure=Meter((1.0, 0.5)),
        measure_fresh=fresh,
    )
    # Sockets of Ray have long names, and a path of one is of 107 characters at most.
    place = f"/tmp/ray-{os.getpid()}"
    script = f"'{sys.executable}' -m tests.decision.ray_compare '{tmp_path}' '{place}'"
    done = subprocess.run(
        [*own_network, f"ip link set lo up && exec {script}"],
        cwd=HERE.parents[2],
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    shutil.rmtree(place, ignore_errors=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "killed 1" in done.stdout
    assert (tmp_path / "spread.json").read_text() == to_json_text(alone.to_json())
    kept, spread_out = (
        {one.name: one.read_bytes() for one in (tmp_path / name).glob("*.npz")}
        for name in ("alone", "spread")
    )
    assert len(kept) > 20
    assert spread_out == kept


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
