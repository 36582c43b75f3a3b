import importlib.util
import os
from pathlib import Path

import pytest

import moh_deploy
from moh_deploy.errors import BackendError, ConfigError, MoHDeployError, PackageError
from moh_deploy.serving.api import serve as job
from moh_deploy.serving.http import server
from moh_deploy.serving.http.worker import WorkerTask
from moh_deploy.serving.settings import ServingSettings
from tests.handmade_package import write_package
from tests.nightly import nightly, sampled


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_package(tmp_path_factory.mktemp("serve") / "package").root


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> list[WorkerTask]:
    """What workers would be started with."""
    found: list[WorkerTask] = []
    monkeypatch.setattr(server, "serve_forever", lambda task, **_: found.append(task))
    return found


def settings_of(tasks: list[WorkerTask]) -> ServingSettings:
    (task,) = tasks
    return task.settings


def test_package_is_called_as_its_directory(package: Path, tasks: list[WorkerTask]):
    moh_deploy.serve(package)
    assert settings_of(tasks) == ServingSettings("package")
    assert tasks[0].model == str(package)
    # What the refusal of other names lists is taken at the beginning, too.
    moh_deploy.serve(package, name="_digits")
    assert tasks[1].settings.name == "_digits"


@pytest.mark.parametrize(
    ("given", "instances", "threads"),
    [
        ({}, 1, None),
        ({"threads": 1}, 4, 1),
        ({"threads": 2}, 2, 2),
        ({"instances": 2, "threads": 3}, 2, 3),
    ],
    ids=str,
)
def test_instances_by_threads_are_the_cores(
    package: Path,
    tasks: list[WorkerTask],
    given: dict[str, int],
    instances: int,
    threads: int | None,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    moh_deploy.serve(package, **given)  # type: ignore[arg-type]
    settings = settings_of(tasks)
    assert (settings.instances, settings.threads) == (instances, threads)


def test_reference_is_found_wherever_the_worker_runs(package: Path, tasks: list[WorkerTask]):
    moh_deploy.serve(package, reference="reference.json")
    assert settings_of(tasks).reference == str(Path("reference.json").resolve())


def test_limits_are_those_that_are_given(package: Path, tasks: list[WorkerTask]):
    moh_deploy.serve(package, max_body=3, max_queue=5, longest={"seq": 7}, read_timeout=0.5)
    limits = tasks[0].limits
    assert (limits.max_body_bytes, limits.max_waiting) == (3 * 2**20, 5)
    assert (limits.longest, limits.read_timeout_s) == ({"seq": 7}, 0.5)


def test_bundle_has_settings_of_its_own_which_arguments_replace(
    package: Path, tasks: list[WorkerTask], tmp_path: Path
):
    root = tmp_path / "bundle"
    (tmp_path / "policy.yaml").write_text("rungs: [{kind: functions}]")
    own = {"name": "m", "max_batch": 7, "otlp": "http://a:4318"}
    moh_deploy.bundle(package, root, **own, guard=tmp_path / "policy.yaml")
    moh_deploy.serve(root)
    moh_deploy.serve(root, name="n", max_batch=9, guard="default", otlp="http://b:4318")
    first, second = (task.settings for task in tasks)
    assert (first.name, first.max_batch, first.guard) == ("m", 7, True)
    assert (second.name, second.max_batch, second.guard) == ("n", 9, True)
    assert (first.otlp, second.otlp) == ("http://a:4318", "http://b:4318")
    assert first.policy is not None
    assert second.policy is None
    assert Path(tasks[0].model).parent.parent.name == "m"


@nightly
def test_reference_of_a_bundle_needs_routing_that_is_read(
    package: Path, tasks: list[WorkerTask], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings = ServingSettings("m", reference="reference.json")
    monkeypatch.setattr(job, "is_bundle", lambda root: True)
    monkeypatch.setattr(job, "bundled_model", lambda root: (package, settings))
    with pytest.raises(ConfigError, match=r"a reference is compared .* --sample-every is 0"):
        moh_deploy.serve(tmp_path, sample_every=0)
    moh_deploy.serve(tmp_path)
    assert settings_of(tasks).reference == "reference.json"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "a/b"}, "the model's name is 'a/b', expected letters"),
        ({"read_timeout": 0}, "--read-timeout is 0, expected 0.001 or more"),
        ({"max_delay_ms": float("inf")}, r"--max-delay-ms is inf, expected 1e\+09 at most"),
        ({"max_delay_ms": float("nan")}, r"--max-delay-ms is nan, expected 1e\+09 at most"),
        ({"threads": 0}, "--threads is 0, expected 1 or more"),
        ({"drill": True}, "--drill are of a guard: give --guard default, too"),
        ({"reference": "r.json", "sample_every": 0}, "routing that is read: --sample-every is 0"),
        ({"host": "192.0.2.1"}, "cannot listen at 192.0.2.1, port 0"),
        ({"host": "a..b"}, "cannot listen at a..b, port 0: .*idna"),
        ({"port": 70000}, "port is 70000, expected 0 to 65535"),
    ],
    ids=str,
)
def test_wrong_option_is_refused(package: Path, options: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        moh_deploy.serve(package, **{"port": 0, **options})  # type: ignore[arg-type]


@sampled(2)
@pytest.mark.parametrize(
    ("directory", "longest", "kind", "message"),
    [
        ("missing", {}, PackageError, "does not exist, expected a package directory"),
        ("package", {"sep": 3}, ConfigError, "longest is of 'sep', but the dynamic dimensions are"),
    ],
)
def test_what_stops_the_worker_is_raised(
    package: Path,
    directory: str,
    longest: dict[str, int],
    kind: type[MoHDeployError],
    message: str,
    capfd: pytest.CaptureFixture[str],
):
    with pytest.raises(kind, match=message):
        moh_deploy.serve(package.with_name(directory), port=0, longest=longest)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("missing", ["starlette", "uvicorn", "prometheus_client"])
def test_packages_of_the_extra_are_missed_before_anything_starts(
    package: Path, tasks: list[WorkerTask], monkeypatch: pytest.MonkeyPatch, missing: str
):
    there = importlib.util.find_spec

    def find_spec(name: str) -> object:
        return None if name == missing else there(name)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    with pytest.raises(BackendError, match=f"not installed: {missing}") as error:
        moh_deploy.serve(package)
    assert error.value.hint == "pip install 'moh-deploy[serve]'"
    assert tasks == []
