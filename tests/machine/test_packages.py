import json
import subprocess
import sys

import pytest

from moh_deploy.machine.packages import PackageFacts, probe_packages
from tests.fakes import Fakes
from tests.nightly import nightly


def _found(name: str) -> PackageFacts:
    (found,) = [item for item in probe_packages().found if item.name == name]
    return found


@nightly
def test_versions_are_those_that_pip_lists():
    command = [sys.executable, "-m", "pip", "list", "--format=json", "--disable-pip-version-check"]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode:
        pytest.skip("no pip")
    listed = {
        item["name"].replace("_", "-").lower(): item["version"] for item in json.loads(ran.stdout)
    }
    found = probe_packages().found
    assert len(found) > 10
    assert {item.name: item.version for item in found} == {
        item.name: listed.get(item.name) for item in found
    }


def test_bounds_are_those_of_the_metadata(fakes: Fakes):
    needs = ["numpy>=2.0", "onnxruntime>=1.23", "nonesuch<3,>=2", 'pytest>=8; extra == "test"']
    fakes.installed("moh-deploy", "0.1.0", needs)
    packages = probe_packages()
    assert packages.known
    required = [item for item in packages.found if item.required]
    assert [(item.name, item.expected) for item in required] == [
        ("numpy", ">=2.0"),
        ("onnxruntime", ">=1.23"),
        ("nonesuch", "<3,>=2"),
    ]
    assert [(gap.problem, gap.fix) for gap in packages.gaps] == [
        ("nonesuch is not installed", "pip install 'nonesuch<3,>=2'")
    ]


@pytest.mark.parametrize(
    ("version", "problem", "fix"),
    [
        ("2.1.0+cu118", "torch is 2.1.0+cu118, expected >=2.9", "pip install 'torch>=2.9'"),
        ("2.9.0", None, None),
        ("2.13.0+cu130", None, None),
        ("2.14.0.dev20261101", None, None),
    ],
)
def test_another_version_is_a_gap_and_local_and_development_ones_count(
    fakes: Fakes, version: str, problem: str | None, fix: str | None
):
    fakes.installed("moh-deploy", "0.1.0", ["torch>=2.9"])
    fakes.installed("torch", version)
    assert (_found("torch").problem, _found("torch").fix) == (problem, fix)


def test_both_builds_of_onnxruntime_at_once_are_a_problem(fakes: Fakes):
    fakes.installed("moh-deploy", "0.1.0", ["onnxruntime>=1.23"])
    fakes.installed("onnxruntime-gpu", "1.30.0")
    both = _found("onnxruntime-gpu")
    assert both.problem == "onnxruntime is installed, too, and holds the same files"
    assert both.fix.startswith("pip uninstall onnxruntime onnxruntime-gpu")
    assert _found("onnxruntime").problem is None


def test_what_belongs_to_extras_is_optional(fakes: Fakes):
    needs = ["numpy>=2.0", 'polygraphy<0.60,>=0.53; extra == "engines"']
    fakes.installed("moh-deploy", "0.1.0", needs)
    fakes.installed("polygraphy", "0.60.1")
    fakes.installed("tensorrt-cu13", "11.4.0")
    polygraphy, tensorrt = _found("polygraphy"), _found("tensorrt-cu13")
    assert not polygraphy.required
    assert polygraphy.problem == "polygraphy is 0.60.1, expected <0.60,>=0.53"
    assert (tensorrt.required, tensorrt.problem) == (False, None)
    assert probe_packages().gaps == ()


def test_torch_is_listed_with_its_bounds_and_no_other_distribution_of_its_name(fakes: Fakes):
    fakes.installed("moh-deploy", "0.1.0", ['torch<3,>=2.9; extra == "export"'])
    fakes.installed("torch", "2.1.0")
    fakes.installed("torch-geometric", "2.6.0")
    found = _found("torch")
    assert not found.required
    assert found.problem == "torch is 2.1.0, expected <3,>=2.9"
    assert "torch-geometric" not in {item.name for item in probe_packages().found}
