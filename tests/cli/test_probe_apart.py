from __future__ import annotations

import errno
import tempfile
from pathlib import Path

import pytest

from moh_deploy.cli import probe_apart as apart
from moh_deploy.cli.probe_apart import ProbeTask, probe_apart
from moh_deploy.errors import ConfigError, PackageError, ValidationError
from tests.cli.run_cli import Cli
from tests.edge_case_package import write_edge_package

LONGEST = (("batch", 3), ("seq", 9))


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return write_edge_package(tmp_path / "package").root


def test_case_that_ends_the_process_is_named(package: Path):
    task = ProbeTask(package, longest=LONGEST, kernels="off")
    with pytest.raises(ValidationError) as killed:
        probe_apart(task, module="tests.cli.dying_probe")
    assert killed.value.hint is not None
    assert killed.value.message == (
        f"the process that probes {package} ended with SIGSEGV in case 'inputs: zero: seq=0'."
    )
    assert not list(Path(tempfile.gettempdir()).glob("dying-probe-*"))


def test_full_disk_is_said_by_whoever_still_can(package: Path, monkeypatch: pytest.MonkeyPatch):
    """The other process has no room for an answer: it ends with a status of its own."""

    def fill(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def run(_: str, folder: Path) -> int:
        with pytest.raises(SystemExit) as ended:
            apart.carry_out(folder)
        return int(str(ended.value.code))

    monkeypatch.setattr(apart, "_run", run)
    monkeypatch.setattr("moh_deploy.api.probe.probe", fill)
    with pytest.raises(PackageError, match=r"disk full while writing .*moh-deploy-probe"):
        probe_apart(ProbeTask(package))


def test_error_keeps_its_kind_and_its_hint(package: Path):
    task = ProbeTask(package, valid_tokens="valit", kernels="off")
    with pytest.raises(ConfigError, match="valid_tokens is 'valit'") as refused:
        probe_apart(task)
    assert refused.value.hint == "Did you mean 'valid'?"


def test_every_option_of_the_command_reaches_the_other_process(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: dict[str, object] = {}

    def note(package_dir: Path, **options: object) -> None:
        asked.update(options, package_dir=package_dir)
        raise ConfigError("noted.")

    def original(checkpoint: Path, loading: dict[str, object], _: object) -> tuple[Path, object]:
        return checkpoint, loading["dtype"]

    monkeypatch.setattr(apart, "_run", lambda _, folder: apart.carry_out(folder))
    monkeypatch.setattr("moh_deploy.api.probe.probe", note)
    monkeypatch.setattr("moh_deploy.cli.original.original_of", original)
    files = [tmp_path / name for name in ("a.npz", "b.npz", "policy.yaml", "model.pt")]
    for file in files:
        file.touch()
    a, b, policy, checkpoint = files
    where = ["--inputs", a, "--inputs", b, "--policy", policy, "--checkpoint", checkpoint]
    how = ["--valid-tokens", "valid", "--longest", "seq=9", "--kernels", "require"]
    shown = cli("probe", tmp_path, *where, *how, "--update-corpus", "--dtype", "float16")
    assert (shown.exit_code, shown.err) == (2, "error: noted.\n")
    del asked["progress"]
    assert asked == {
        "package_dir": tmp_path,
        "inputs": (a, b),
        "update_corpus": True,
        "valid_tokens": "valid",
        "longest": {"seq": 9},
        "kernels": "require",
        "policy": policy,
        "original": (checkpoint, "float16"),
    }
