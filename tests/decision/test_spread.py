"""Samples that are scored by a Ray cluster, and what of it can be told without one."""

import importlib.util
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

import moh_deploy
from moh_deploy.decision import score_alternatives, spread
from moh_deploy.decision.alternative import Alternative, OpenedAlternative
from moh_deploy.decision.score_alternatives import AlternativeBlock
from moh_deploy.errors import BackendError, ConfigError, MoHDeployError, PackageError
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
    lost_and_won = samples(500)
    write_npz(folder / "x.npz", lost_and_won.inputs)
    np.save(folder / "labels.npy", right_labels(lost_and_won))
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


def on_ray(folder: Path, second: str) -> str:
    """Compare on two nodes in namespaces of their own, and return what was printed."""
    # Sockets of Ray have long names, and a path of one is of 107 characters at most.
    place = f"/tmp/ray-{os.getpid()}"
    script = f"'{sys.executable}' -m tests.decision.ray_nodes '{folder}' '{place}' {second}"
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
        {path.name: path.read_bytes() for path in (folder / name).glob("*.npz")}
        for name in ("alone", "spread")
    )
    assert len(kept) > 20
    assert spread_out == kept


@nightly
def test_two_nodes_of_which_one_loses_a_worker_make_the_same_report(folder: Path):
    """The nodes have working directories of their own, and no files but those of the plan."""
    assert "killed 1, worked on 2 nodes" in on_ray(folder, "all")
    assert_as_alone(folder)


@nightly
@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("hidden", r".*model\.onnx.* \(Machine .* of the cluster\.\)"),
        ("bare", r"workers of the cluster failed at runs \d+ and on: .*moh_deploy"),
    ],
    ids=["no files", "no package"],
)
def test_node_that_lacks_what_it_takes_is_refused_in_a_sentence(
    folder: Path, second: str, message: str
):
    said = on_ray(folder, second)
    assert re.search(
        rf"^refused: alternative '(right|wrong)' cannot run: {message}", said, re.MULTILINE
    )


def test_what_cannot_be_spread_is_refused_first(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(spread.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match="Ray is not installed"):
        spread.check_ray(1, [])
    monkeypatch.setattr(spread.importlib.util, "find_spec", lambda name: object())
    spread.check_ray(1, [])
    with pytest.raises(ConfigError, match="the plan has no `threads`"):
        spread.check_ray(None, [])


def test_metric_without_a_name_of_its_own_is_refused_first(tmp_path: Path, monkeypatch):
    plan = write_case(tmp_path)
    code = "spread_margin = lambda outputs, labels: labels == 0\nmargin = spread_margin\n"
    (tmp_path / "code" / "spread_nameless.py").write_text(code)
    plan.write_text(plan.read_text().replace("spread_margin:", "spread_nameless:"))
    monkeypatch.setattr(spread.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ConfigError, match="a metric cannot be sent to other machines: ") as refused:
        moh_deploy.compare(plan=plan, trust_code=True, ray="auto", keep_scores=tmp_path / "kept")
    assert "a name of its own" in str(refused.value.hint)


class FakeRay:
    """Stands for the module: of two machines that are alive, the larger has 4 CPUs.

    What is sent is run here, as another process would find it; `fails` is raised in its place.
    """

    class exceptions:
        class RayError(Exception):
            pass

        class RayTaskError(RayError):
            def __init__(self, cause: Exception) -> None:
                self.cause = cause

    def __init__(self, fails: Exception | None = None) -> None:
        self.fails, self.asked = fails, dict[str, int]()

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict[str, Any]]:
        cpus = ({"CPU": 4.0}, {}, {"CPU": 8.0})
        return [{"Alive": i < 2, "Resources": resources} for i, resources in enumerate(cpus)]

    def remote(self, **asked: int) -> Any:
        self.asked = asked
        return lambda function: SimpleNamespace(
            remote=lambda *given: (function, pickle.dumps(given), object())
        )

    def wait(self, refs: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        return refs[-num_returns:], refs[:-num_returns]

    def get(self, ref: tuple[Callable[..., object], bytes, object]) -> object:
        try:
            if self.fails is not None:
                raise self.fails
            return ref[0](*pickle.loads(ref[1]))
        except MoHDeployError as error:
            raise self.exceptions.RayTaskError(error) from error


@pytest.fixture
def blocks(tmp_path: Path) -> Iterator[list[AlternativeBlock]]:
    """Blocks of a package and of a server, which are not the same kind of alternative."""
    package = write_classifier(tmp_path / "package")
    model = PackageDir(package.root)
    with model.open() as runner:
        alternatives = [
            Alternative("a", "", model, AS_IT_IS),
            Alternative("b", "", model, AS_IT_IS, elsewhere="there"),
        ]
        opened = [
            OpenedAlternative(alternative, runner, package.manifest) for alternative in alternatives
        ]
        yield [
            AlternativeBlock(alternative, start, [], [], -100)
            for start in (0, 8)
            for alternative in opened
        ]


def spread_over(
    ray: Any, blocks: list[AlternativeBlock], monkeypatch: pytest.MonkeyPatch, cpus: int = 4
):
    monkeypatch.setitem(sys.modules, "ray", ray)
    return [block.key for block, _ in spread.RayBlocks("auto", cpus)(blocks)]


def test_servers_are_asked_by_this_machine(
    blocks: list[AlternativeBlock], monkeypatch: pytest.MonkeyPatch
):
    ray = FakeRay()
    keys = spread_over(ray, blocks, monkeypatch)
    assert keys == [("a", 8), ("a", 0), ("b", 0), ("b", 8)]  # the first two as Ray is done
    assert ray.asked == {"num_cpus": 4, "max_retries": 3}


def test_block_that_no_machine_takes_is_refused(blocks: list[AlternativeBlock], monkeypatch):
    message = "a block takes 5 threads, and no machine of the Ray cluster at auto has more than 4 C"
    with pytest.raises(BackendError, match=message):
        spread_over(FakeRay(), blocks, monkeypatch, cpus=5)


def test_cluster_of_another_ray_is_refused_in_a_sentence(
    blocks: list[AlternativeBlock], monkeypatch
):
    def init(**options: object) -> None:
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 1.0\n")

    ray = SimpleNamespace(is_initialized=lambda: False, init=init)
    with pytest.raises(BackendError) as refused:
        spread_over(ray, blocks, monkeypatch)
    assert refused.value.message == (
        "the Ray cluster at auto cannot be used: Version mismatch: The cluster was started with:"
        " Ray: 1.0"
    )


def test_machine_that_runs_an_alternative_otherwise_or_lacks_its_files_is_refused(
    blocks: list[AlternativeBlock], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    with monkeypatch.context() as patched:
        ours = score_alternatives.ran_by(blocks[0].alternative)
        found = iter([ours, ours, "another processor"])
        patched.setattr(spread, "ran_by", lambda alternative: next(found))
        with pytest.raises(
            BackendError, match="it is run by another processor, expected moh-deploy"
        ):
            spread_over(FakeRay(), blocks, monkeypatch)
    (tmp_path / "package" / "model.onnx").unlink()
    with pytest.raises(PackageError, match=r"alternative 'a' .*model\.onnx.*\(Machine .* of the"):
        spread_over(FakeRay(), blocks, monkeypatch)


@pytest.mark.parametrize(
    ("fails", "said"),
    [
        (
            FakeRay.exceptions.RayTaskError(
                RuntimeError("It may be\n\nModuleNotFoundError: No module named 'scores'\n")
            ),
            "RuntimeError: ModuleNotFoundError: No module named 'scores'",
        ),
        (FakeRay.exceptions.RayError("worker died"), "RayError: worker died"),
    ],
    ids=["no module", "lost"],
)
def test_workers_that_fail_are_told_in_a_sentence(
    blocks: list[AlternativeBlock], monkeypatch: pytest.MonkeyPatch, fails: Exception, said: str
):
    with pytest.raises(BackendError) as refused:
        spread_over(FakeRay(fails), blocks, monkeypatch)
    assert refused.value.message == (
        f"alternative 'a' cannot run: workers of the cluster failed at runs 8 and on: {said}"
    )
