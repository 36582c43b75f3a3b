"""A bundle for genai holds what `og.Model` reads, and nothing of it may change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moh_deploy import native
from moh_deploy.errors import ConfigError, PackageError
from moh_deploy.serving.genai.bundle import is_genai_bundle, read_genai_bundle, write_genai_bundle
from tests.serving.genai.decoder_package import package

TOKENIZER = {"tokenizer.json": "{}", "tokenizer_config.json": "{}"}


@pytest.fixture(autouse=True)
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "libmoh_ort_cpu.so"
    path.write_bytes(b"kernels")
    monkeypatch.setattr(native, "kernel_library", lambda: path)
    return path


def test_bundle_holds_what_genai_reads(tmp_path: Path):
    files = {**TOKENIZER, "generation_config.json": '{"top_k": 3}'}
    written = write_genai_bundle(package(tmp_path / "p", files), tmp_path / "b", threads=2)
    assert is_genai_bundle(tmp_path / "b")
    assert read_genai_bundle(tmp_path / "b") == written
    config = json.loads((tmp_path / "b" / "genai_config.json").read_text())
    options = config["model"]["decoder"]["session_options"]
    assert (tmp_path / "b" / options["custom_ops_library"]).read_bytes() == b"kernels"
    assert (tmp_path / "b" / config["model"]["decoder"]["filename"]).is_file()
    assert (options["intra_op_num_threads"], config["search"]["top_k"]) == (2, 3)
    assert (tmp_path / "b" / "tokenizer.json").is_file()


def test_bundle_without_kernels_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(native, "kernel_library", lambda: None)
    written = write_genai_bundle(package(tmp_path / "p", TOKENIZER), tmp_path / "b")
    assert written.library is None
    assert "custom_ops_library" not in (tmp_path / "b" / "genai_config.json").read_text()


@pytest.mark.parametrize("missing", TOKENIZER)
def test_package_without_tokenizer_is_refused(tmp_path: Path, missing: str):
    files = {name: text for name, text in TOKENIZER.items() if name != missing}
    with pytest.raises(PackageError, match=f"has no {missing}, which genai's tokenizer reads"):
        write_genai_bundle(package(tmp_path / "p", files), tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_package_that_was_tuned_for_another_runtime_is_refused(tmp_path: Path):
    tuned = package(tmp_path / "p", TOKENIZER, runtime="openvino")
    with pytest.raises(ConfigError, match="was tuned for openvino, and onnxruntime-genai runs"):
        write_genai_bundle(tuned, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_earlier_bundle_is_replaced_and_nothing_else(tmp_path: Path):
    made = package(tmp_path / "p", TOKENIZER)
    for _ in range(2):
        write_genai_bundle(made, tmp_path / "b")
    (tmp_path / "b" / "notes.txt").write_text("mine")
    with pytest.raises(PackageError, match=r"holds 'notes\.txt'"):
        write_genai_bundle(made, tmp_path / "b")


@pytest.mark.parametrize("name", ["genai_config.json", "libmoh_ort_cpu.so", "package/model.onnx"])
def test_changed_file_is_found(tmp_path: Path, name: str):
    write_genai_bundle(package(tmp_path / "p", TOKENIZER), tmp_path / "b")
    path = tmp_path / "b" / name
    path.unlink()  # it may be a link to the package's
    path.write_text("other")
    with pytest.raises(PackageError, match=f"{name} has changed since the bundle was written"):
        read_genai_bundle(tmp_path / "b")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("format_version", 7, "format_version is 7, expected 1"),
        ("library", 3, "key 'library'"),
        ("files", {"../x": "0"}, r"names '\.\./x', expected a path in it"),
    ],
)
def test_changed_manifest_is_refused(tmp_path: Path, key: str, value: object, words: str):
    write_genai_bundle(package(tmp_path / "p", TOKENIZER), tmp_path / "b")
    path = tmp_path / "b" / "bundle.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(PackageError, match=words):
        read_genai_bundle(tmp_path / "b")
