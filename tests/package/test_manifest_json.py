import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moh_deploy.errors import PackageError
from moh_deploy.package import Call, CallArgument, Proof
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


CALL = Call(
    args=(
        CallArgument(input="x"),
        CallArgument(
            container="user.Cache", context=[["keys"], {"seen": 7}], items=(CallArgument(),)
        ),
    ),
    kwargs={
        f"given_{value!r}": CallArgument(value=value) for value in (None, True, 1, 1.0, "true")
    },
)


def test_call_of_the_original_comes_back_with_the_types_of_its_constants(tmp_path: Path):
    path = tmp_path / "manifest.json"
    path.write_text(manifest_text(replace(MANIFEST, call=CALL)))
    found = read_manifest(path).call
    assert found == CALL
    assert [type(value.value) for value in found.kwargs.values()] == [
        type(value.value) for value in CALL.kwargs.values()
    ]


@pytest.mark.parametrize("missing", ["call", "compute_type", "sha256"])
def test_manifest_of_before_there_was_a_key_is_read(tmp_path: Path, missing: str):
    def older(content: dict[str, Any]) -> None:
        for key in {missing, "sha256"}:
            del content[key]

    assert (MANIFEST.call, MANIFEST.compute_type) == (None, "float32")
    assert read_manifest(edited(tmp_path, older)) == MANIFEST


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "top_k": lambda c: c["layers"][0].update(top_k=3),
    "node": lambda c: c["layers"][0].update(node=None),
    "dims": lambda c: c["dims"].update(batch=3),
    "shape": lambda c: c["inputs"][0].update(shape=["batch", "seq", "8"]),
    "order": lambda c: c["inputs"][0]["shape"].reverse(),
    "error": lambda c: c["proof"].update(max_abs_error=1.0000000000000001e-7 * 1.1),
    "key_left_out": lambda c: c.pop("tuning"),
    "file": lambda c: c["files"].update({"model.onnx": "0"}),
    "digest": lambda c: c.update(sha256="0"),
    "digest_of_another_type": lambda c: c.update(sha256=1),
}


@pytest.mark.parametrize("name", EDITS)
def test_edit_is_noticed(tmp_path: Path, name: str):
    path = edited(tmp_path, EDITS[name])
    with pytest.raises(
        PackageError, match=r"manifest\.json has changed since .* expected "
    ) as error:
        read_manifest(path)
    assert "moh-deploy tune" in (error.value.hint or "")


def test_digest_is_of_what_is_said_not_of_how(tmp_path: Path):
    path = edited(tmp_path, lambda content: None)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(content.items())), indent=7, ensure_ascii=False))
    assert read_manifest(path) == MANIFEST


def test_digest_is_the_documented_one():
    layer = replace(MANIFEST.layers[0], path="Blöcke.0", active_share=1e-07)
    text = manifest_text(replace(MANIFEST, layers=(layer,)))
    assert "Blöcke.0" in text
    content = json.loads(text)
    digest = content.pop("sha256")
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    assert r'"path":"Bl\u00f6cke.0"' in canonical
    assert digest == hashlib.sha256(canonical.encode("ascii")).hexdigest()


@pytest.mark.parametrize("error", [math.nan, math.inf])
def test_error_that_is_no_number_comes_back_and_the_file_is_valid_json(
    tmp_path: Path, error: float
):
    text = manifest_text(replace(MANIFEST, proof=Proof(error, 1.0, ())))
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    (tmp_path / "manifest.json").write_text(text)
    proof = read_manifest(tmp_path / "manifest.json").proof
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
