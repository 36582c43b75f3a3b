from __future__ import annotations

import ast
from pathlib import Path

import pytest

import moh_deploy
from moh_deploy.add_ons import entry_points


def test_public_names_are_these():
    assert dir(moh_deploy) == [
        "Engine",
        "OnnxPackage",
        "bench",
        "bisect",
        "build",
        "bundle",
        "bundle_for_genai",
        "check_bundle",
        "compare",
        "cost",
        "doctor",
        "drill",
        "export",
        "generate",
        "inline",
        "inspect",
        "kernel_library",
        "load_original",
        "polygraphy_runner",
        "precision",
        "probe",
        "profile",
        "prune",
        "run",
        "serve",
        "tune",
        "tune_within",
        "verify",
        "verify_genai_bundle",
        "watch",
    ]
    assert moh_deploy.__all__ == dir(moh_deploy)


def test_type_checkers_see_all_of_them():
    stub = ast.parse(Path(moh_deploy.__file__).with_suffix(".pyi").read_text())
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    typed = {alias.asname: node.module for node in imports for alias in node.names}
    functions = entry_points("functions").items()
    added = {name: point.value.partition(":")[0] for name, point in functions}
    assert typed == moh_deploy._HOME | added


@pytest.mark.parametrize("name", [name for name in dir(moh_deploy) if name != "export"])
def test_public_name_is_what_it_says(name: str):
    assert getattr(moh_deploy, name).__name__ == name


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'exprot'"):
        _ = moh_deploy.exprot
