from __future__ import annotations

import pytest

import moh_deploy
from moh_deploy import _HOME


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
    assert set(moh_deploy.__all__) == set(_HOME)


@pytest.mark.parametrize("name", sorted(set(_HOME) - {"export"}))
def test_public_name_is_what_it_says(name: str):
    assert getattr(moh_deploy, name).__name__ == name


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'exprot'"):
        _ = moh_deploy.exprot
