from __future__ import annotations

import xml.etree.ElementTree as xml
from pathlib import Path

import pytest

from moh_deploy.system.npz import write_npz
from tests.cli.run_cli import Cli
from tests.edge_case_package import inputs, write_edge_package
from tests.nightly import nightly
from tests.validate.edge_cases import planted_bugs

pytestmark = pytest.mark.usefixtures("warm_processes")

QUICK = ["--kernels", "off", "--longest", "seq=9", "--longest", "batch=3"]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return write_edge_package(tmp_path / "package").root


@nightly
def test_probe_exits_with_0_and_shows_every_case(cli: Cli, package: Path):
    shown = cli("probe", package, *QUICK, "--valid-tokens", "valid")
    assert (shown.exit_code, shown.err) == (0, "")
    for text in ("ties", "saturated", "2 layers", "padding only: valid all 0", "longest: seq=9"):
        assert text in shown.out
    assert "PASSED: 24 passed, 0 failed, 4 not applicable, 0 not run" in shown.out


def test_probe_json(cli: Cli, package: Path, tmp_path: Path):
    write_npz(tmp_path / "in.npz", inputs(batch=4))
    content = cli("probe", package, *QUICK, "--inputs", tmp_path / "in.npz", "--json").json
    assert content["passed"] is True
    assert content["package"] == str(package)
    assert content["counts"] == {"passed": 24, "failed": 0, "not applicable": 4, "not run": 1}
    assert content["results"][0] == {
        "kind": "routing",
        "case": "ties",
        "place": "blocks.0.attn",
        "status": "passed",
        "detail": "gates and attention agree",
    }
    assert content["mining"]["searched"] == 4
    assert content["mining"]["samples"][0]["tokens"][0]["layer"].startswith("blocks.")
    assert content["corpus"] == {
        "samples": 0,
        "bytes": 0,
        "recorded_from": [],
        "smallest_margin": None,
        "written": False,
    }


def test_probe_exits_with_1_if_a_case_fails(cli: Cli, tmp_path: Path):
    bug = planted_bugs.softmax_without_the_maximum
    package = write_edge_package(tmp_path / "package", bug).root
    shown = cli("probe", package, *QUICK, "--junit", tmp_path / "probe.xml")
    assert shown.exit_code == 1
    assert "FAILED: " in shown.out
    assert shown.err.startswith(
        "error: the package does not stand its edge cases: gates of layer 'blocks.0.attn' in case"
        " 'all negative'"
    )
    failed = cli("probe", package, *QUICK, "--json")
    assert failed.json["error"]["exit_code"] == 1
    root = xml.parse(tmp_path / "probe.xml").getroot()
    assert root.get("name") == "moh-deploy probe"
    suite = root.find("testsuite")
    assert suite is not None
    cases = {case.get("name"): case for case in suite.findall("testcase")}
    assert cases["verdict"].find("failure") is not None
    assert cases["saturated [blocks.0.attn]"].find("failure") is not None
    assert cases["ties [blocks.0.attn]"].find("failure") is None
    skipped = cases["padding only [model outputs]"].find("skipped")
    assert skipped is not None
    assert str(skipped.get("message")).startswith("not run: nobody said")


def test_junit_of_a_probe_that_did_not_start_says_so(cli: Cli, tmp_path: Path):
    shown = cli("probe", tmp_path / "nothing", "--junit", tmp_path / "probe.xml")
    assert shown.exit_code == 5
    (error,) = xml.parse(tmp_path / "probe.xml").getroot().iter("error")
    assert "does not exist" in str(error.get("message"))


def test_longest_of_another_form_is_refused(cli: Cli, package: Path):
    for given, message in (("seq", "expected DIM=N"), ("seq=x", "expected DIM=N")):
        shown = cli("probe", package, "--longest", given)
        assert (shown.exit_code, message in shown.err) == (2, True)
    twice = cli("probe", package, "--longest", "seq=3", "--longest", "seq=4")
    assert (twice.exit_code, "longest names 'seq' twice" in twice.err) == (2, True)
