"""onnxruntime-genai itself runs a bundle: its greedy tokens are those of the model in PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import moh_deploy
from moh_deploy.derive.caches_in_place import write_caches_in_place
from moh_deploy.errors import ConfigError, PackageError, ValidationError
from moh_deploy.package import OnnxPackage
from moh_deploy.serving.genai import verify
from moh_deploy.serving.genai.verify import genai_tokens
from moh_deploy.system.progress import SilentProgress
from tests.exporting import prove_in_this_process
from tests.handmade_package import write_package
from tests.nightly import nightly
from tests.text.export_small import export_directory, greedy
from tests.text.model_directories import write_plain_torch, write_weights
from tests.text.tokenizer_files import write_tokenizer

PROMPTS = [[7], [9, 4, 7, 31, 8, 60, 3], [(7 * i) % 90 + 3 for i in range(40)]]
STEPS = 64
FORMS = ("concatenated", "in-place")


def test_package_that_is_no_decoder_is_refused(tmp_path: Path):
    package = write_package(tmp_path / "p").root
    with pytest.raises(PackageError, match="is no decoder as genai runs it"):
        moh_deploy.bundle_for_genai(package, tmp_path / "b")
    with pytest.raises(ConfigError, match="threads is 0"):
        moh_deploy.bundle_for_genai(package, tmp_path / "b", threads=0)
    assert not (tmp_path / "b").exists()


def test_package_that_verify_refuses_is_not_bundled(tmp_path: Path):
    package = write_package(tmp_path / "p", scale=1.01).root
    with pytest.raises(ValidationError, match="the package to start from, is not equal"):
        moh_deploy.bundle_for_genai(package, tmp_path / "b")


def has_genai() -> Any:
    return pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> tuple[Path, torch.nn.Module]:
    has_genai()
    root = tmp_path_factory.mktemp("text") / "model"
    model = write_plain_torch(root)
    write_tokenizer(root)
    return root, model


@pytest.fixture(scope="module", params=FORMS)
def exported(original, request, tmp_path_factory) -> OnnxPackage:
    with pytest.MonkeyPatch.context() as monkeypatch:
        prove_in_this_process(monkeypatch)
        output = tmp_path_factory.mktemp(request.param) / "package"
        return export_directory(original[0], output, cache=request.param)


@nightly
def test_tokens_of_genai_are_those_of_pytorch(original, exported: OnnxPackage, tmp_path: Path):
    root, model = original
    report = moh_deploy.bundle_for_genai(exported.root, tmp_path / "b")
    assert report.bundle.shares_buffer is (exported.manifest.caches is not None)
    found = zip(*genai_tokens(tmp_path / "b", PROMPTS, 2, STEPS), strict=True)
    assert [list(one) for one in found] == [greedy(model, prompt, STEPS) for prompt in PROMPTS]
    for against in (
        None,
        moh_deploy.load_original(root, trust_code=True, task="text-generation"),
    ):
        compared = moh_deploy.verify_genai_bundle(tmp_path / "b", against=against)
        assert compared.equal
        assert compared.parity.differences == ()
        assert (compared.prompt_lengths, compared.steps) == (
            verify.PROMPT_LENGTHS,
            verify.MOST_STEPS,
        )


@nightly
def test_weights_of_4_bits_run_in_genai(exported: OnnxPackage, tmp_path: Path):
    moh_deploy.precision(exported.root, to="int4", output=tmp_path / "int4")
    moh_deploy.bundle_for_genai(tmp_path / "int4", tmp_path / "b")
    assert moh_deploy.verify_genai_bundle(tmp_path / "b").equal


@nightly
def test_other_weights_are_found(original, exported: OnnxPackage, tmp_path: Path):
    weights = {name: one.clone() for name, one in original[1].state_dict().items()}
    write_plain_torch(tmp_path / "other")
    weights["head.weight"] = weights["head.weight"].roll(1, dims=0)
    write_weights(tmp_path / "other", weights)
    other = moh_deploy.load_original(tmp_path / "other", trust_code=True, task="text-generation")
    moh_deploy.bundle_for_genai(exported.root, tmp_path / "b")
    compared = moh_deploy.verify_genai_bundle(tmp_path / "b", against=other)
    assert compared.failure is not None
    assert "run by genai, does not generate what original" in compared.failure.message


@nightly
def test_moved_bundle_runs_and_genai_reads_its_tokenizer(exported: OnnxPackage, tmp_path: Path):
    og = has_genai()
    moh_deploy.bundle_for_genai(exported.root, tmp_path / "b")
    (tmp_path / "b").rename(tmp_path / "moved")
    assert moh_deploy.verify_genai_bundle(tmp_path / "moved").equal
    tokenizer = og.Tokenizer(og.Model(str(tmp_path / "moved")))
    assert list(tokenizer.encode("Hi!")) == [42, 75, 3]
    assert tokenizer.decode(tokenizer.encode("Hi!")) == "Hi!"


@nightly
def test_changed_packages_keep_their_tokenizer(exported: OnnxPackage, tmp_path: Path):
    moh_deploy.prune(exported.root, tmp_path / "pruned", keep="3")
    if exported.manifest.caches is None:
        write_caches_in_place(exported, tmp_path / "in-place", SilentProgress())
    for package in tmp_path.iterdir():
        assert "tokenizer.json" in OnnxPackage.open(package).manifest.files
