from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from moh_deploy.cli.probe_apart import ProbeTask, probe_apart
from moh_deploy.errors import ConfigError, ValidationError
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


def test_error_keeps_its_kind_and_its_hint(package: Path):
    task = ProbeTask(package, valid_tokens="valit", kernels="off")
    with pytest.raises(ConfigError, match="valid_tokens is 'valit'") as refused:
        probe_apart(task)
    assert refused.value.hint == "Did you mean 'valid'?"
