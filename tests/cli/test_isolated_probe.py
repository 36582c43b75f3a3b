from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from moh_deploy.cli import isolated_probe as probing
from moh_deploy.cli.isolated_probe import ProbeTask, isolated_probe
from moh_deploy.errors import ConfigError, ValidationError
from moh_deploy.system import isolate
from tests.cli.dying_probe import dying_probe
from tests.cli.run_cli import Cli
from tests.edge_case_package import write_edge_package

pytestmark = pytest.mark.usefixtures("warm_processes")

LONGEST = {"batch": 3, "seq": 9}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return write_edge_package(tmp_path / "package").root


def test_case_that_ends_the_process_is_named(package: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(probing, "_probed", dying_probe)
    task = ProbeTask(package, longest=LONGEST, kernels="off")
    with pytest.raises(ValidationError) as killed:
        isolated_probe(task)
    assert killed.value.hint is not None
    assert killed.value.message == (
        f"the process that probes {package} ended with SIGSEGV in case 'inputs: zero: seq=0'."
    )
    assert not list(Path(tempfile.gettempdir()).glob("dying-probe-*"))


def test_error_keeps_its_kind_and_its_hint(package: Path):
    task = ProbeTask(package, valid_tokens="valit", kernels="off")
    with pytest.raises(ConfigError, match="valid_tokens is 'valit'") as refused:
        isolated_probe(task)
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

    monkeypatch.setattr(isolate, "_run", lambda folder, *_, **__: isolate.carry_out(folder))
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
        "runtime": None,
        "policy": policy,
        "original": (checkpoint, "float16"),
    }
