"""`inspect` on engines: it needs neither TensorRT nor a GPU."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

import moh_deploy
from moh_deploy.derive.engine import ENGINE
from moh_deploy.errors import ConfigError, PackageError
from moh_deploy.runtime.tensorrt.messages import BuilderOptions
from moh_deploy.system.replaceable import check_output
from tests.cli.conftest import cli
from tests.cli.run_cli import Cli
from tests.runtime.tensorrt.engines import MANIFEST, write_engine

__all__ = ["cli"]

_ASKED = replace(MANIFEST, builder=BuilderOptions(refit=True, optimization_level=4))


def test_an_engine_is_shown(cli: Cli, tmp_path: Path):
    root = write_engine(tmp_path / "engine", _ASKED)
    shown = cli("inspect", root)
    assert shown.exit_code == 0
    words = " ".join(shown.out.split())
    assert "B, float32" in words
    assert "built by moh-deploy 0.1.0, TensorRT 10.9.0.34; compute capability of the GPU" in words
    assert "profile: batch=1..2..4,seq=1..3..16" in words
    assert "profile: batch=4..8..32,seq=16..32..64" in words
    assert "input x: float32 [batch, seq, 8]" in words
    assert "built with refit, optimization_level 4" in words
    assert re.search(r"blocks\.0\.attn\W+kernel\W+operators", words)
    # A command that can be copied is one line.
    lines = shown.out.splitlines()
    assert f"trtexec --loadEngine={shlex.quote(str(root))}/model.engine --shapes=x:2x3x8" in lines


def test_json_has_all_that_is_known(cli: Cli, tmp_path: Path):
    root = write_engine(tmp_path / "engine", _ASKED)
    found = cli("inspect", root, "--json").json
    assert found["manifest"] == json.loads((root / "engine.json").read_text())
    assert found["engine_bytes"] == (root / "model.engine").stat().st_size


def test_what_runs_layers_of_an_engine_is_no_option(tmp_path: Path):
    with pytest.raises(ConfigError, match="kernels is off, but what runs the layers of"):
        moh_deploy.inspect(write_engine(tmp_path / "engine"), kernels="off")


def test_an_engine_that_has_changed_is_refused(tmp_path: Path):
    root = write_engine(tmp_path / "engine")
    (root / "model.engine").write_text("other")
    with pytest.raises(PackageError, match=r"model\.engine"):
        moh_deploy.inspect(root)


def test_an_engine_whose_loader_was_imported_is_replaced(tmp_path: Path):
    root = write_engine(tmp_path / "engine")
    (root / "__pycache__").mkdir()
    check_output(root, ENGINE)
    (root / "mine").touch()
    with pytest.raises(PackageError, match="mine"):
        check_output(root, ENGINE)
