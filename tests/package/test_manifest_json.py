from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moh_deploy.errors import PackageError
from moh_deploy.package import Proof
from moh_deploy.package.manifest_json import manifest_text, read_manifest
from tests.handmade_package import MANIFEST


def edited(tmp_path: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    content = json.loads(manifest_text(MANIFEST))
    edit(content)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(content))
    return path


def test_manifest_comes_back_equal(tmp_path: Path):
    assert read_manifest(edited(tmp_path, lambda content: None)) == MANIFEST


def test_manifest_without_compute_type_means_float32(tmp_path: Path):
    older = edited(tmp_path, lambda content: content.pop("compute_type"))
    assert read_manifest(older).compute_type == "float32"


@pytest.mark.parametrize("error", [math.nan, math.inf])
def test_error_that_is_no_number_comes_back_and_the_file_is_valid_json(
    tmp_path: Path, error: float
):
    text = manifest_text(replace(MANIFEST, proof=Proof(error, 1.0, ())))
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    (tmp_path / "manifest.json").write_text(text)
    proof = read_manifest(tmp_path / "manifest.json").proof
    assert proof is not None
    assert repr(proof.max_abs_error) == repr(error)


@pytest.mark.parametrize("found", [0, 2, "1", None])
def test_other_format_version_is_refused_naming_found_and_supported(tmp_path: Path, found: object):
    path = edited(tmp_path, lambda content: content.update(format_version=found, new_key=1))
    with pytest.raises(
        PackageError, match=rf"format_version is {found!r}, .* supports 1\."
    ) as error:
        read_manifest(path)
    assert error.value.hint is not None


def _drop_head_dim(content: dict[str, Any]) -> None:
    del content["layers"][0]["head_dim"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.pop("opset"), "key 'opset' is missing"),
        (_drop_head_dim, r"key 'layers\[0\]\.head_dim' is missing"),
        (lambda c: c.update(extra=1), "unexpected key 'extra'"),
        (lambda c: c["inputs"][0].update(rank=3), r"unexpected key 'inputs\[0\]\.rank'"),
        (lambda c: c.update(opset="20"), "key 'opset': .*, got '20'"),
        (lambda c: c["dims"].update(batch=True), r"key 'dims\.batch': .*, got True"),
        (lambda c: c.update(layers={}), "key 'layers': "),
        (lambda c: c.update(compute_type="int8"), "key 'compute_type': .*, got 'int8'"),
    ],
)
def test_manifest_that_does_not_fit_is_refused_naming_the_key(
    tmp_path: Path, edit: Callable[[dict[str, Any]], object], message: str
):
    with pytest.raises(PackageError, match=message):
        read_manifest(edited(tmp_path, edit))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "got a JSON list, expected an object"),
        ("\xff", "not valid JSON"),
    ],
)
def test_file_that_is_no_manifest_is_refused(tmp_path: Path, text: str, message: str):
    path = tmp_path / "manifest.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(PackageError, match=message):
        read_manifest(path)
