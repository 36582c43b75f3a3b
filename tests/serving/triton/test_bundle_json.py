import json
from pathlib import Path
from typing import Any

import pytest

from moh_deploy.errors import PackageError
from moh_deploy.serving.triton.bundle_json import (
    BUNDLE_NAME,
    bundle_text,
    is_bundle,
    read_bundle,
)
from tests.serving.triton.bundles import bundle_of_handmade, rewrite_bundle


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    root = bundle_of_handmade(tmp_path_factory.mktemp("written"))
    return (root / BUNDLE_NAME).read_bytes()


@pytest.fixture
def root(tmp_path: Path, written: bytes) -> Path:
    (tmp_path / BUNDLE_NAME).write_bytes(written)
    return tmp_path


def test_what_is_written_reads_back(root: Path):
    bundle = read_bundle(root)
    text = bundle_text(bundle)
    (root / BUNDLE_NAME).write_text(text)
    assert read_bundle(root) == bundle
    assert bundle.config.as_posix() == "repository/handmade/config.pbtxt"
    assert is_bundle(root)


def test_change_by_hand_is_told_from_what_was_written(root: Path):
    content = json.loads((root / BUNDLE_NAME).read_text())
    content["settings"]["instances"] = 64
    (root / BUNDLE_NAME).write_text(json.dumps(content))
    with pytest.raises(PackageError, match="has changed since it was written"):
        read_bundle(root)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format_version is 2, expected 1"),
        ({"max_batch": "64"}, "key 'max_batch': Input should be a valid integer"),
        ({"surplus": 1}, "key 'surplus'"),
        ({"backend": "onnxruntime"}, "is for Triton's ONNX Runtime backend, which moh-deploy no"),
        ({"files": {"../model.py": "0" * 64}}, r"names '\.\./model\.py', expected a path in"),
        ({"files": {"/etc/passwd": "0" * 64}}, "names '/etc/passwd', expected a path in"),
        (
            {"library": {"file": "../lib.so", "glibc": None, "machine": "x86_64"}},
            r"names '\.\./lib\.so'",
        ),
        ({"settings": {"name": "../.."}}, r"names 'repository/\.\./\.\./1'"),
        ({"settings": {"name": "m", "audit_log": "/etc/log"}}, "names '/etc/log', expected a path"),
    ],
)
def test_what_no_bundle_says_is_refused(root: Path, changes: dict[str, Any], message: str):
    rewrite_bundle(root, changes)
    with pytest.raises(PackageError, match=message):
        read_bundle(root)


def test_bundle_of_the_backend_that_was_dropped_names_the_way(root: Path):
    rewrite_bundle(root, {"backend": "onnxruntime"})
    with pytest.raises(PackageError) as refused:
        read_bundle(root)
    assert str(refused.value.hint).endswith("moh-deploy bundle PACKAGE -o DIR --backend python.")


def test_other_directory_is_no_bundle(tmp_path: Path):
    assert not is_bundle(tmp_path)
    with pytest.raises(PackageError, match=r"is no bundle: it has no bundle\.json"):
        read_bundle(tmp_path)
