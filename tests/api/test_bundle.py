import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

import moh_deploy
from moh_deploy.derive.forms import write_caches_in_place
from moh_deploy.errors import ConfigError, PackageError, ValidationError
from moh_deploy.package import OnnxPackage
from moh_deploy.report.document import Text
from moh_deploy.serving.genai import verify
from moh_deploy.serving.genai.verify import genai_tokens
from moh_deploy.serving.triton import check
from moh_deploy.serving.triton.bundle_json import NEVER_RUN, read_bundle
from moh_deploy.system.progress import SilentProgress
from tests.exporting import prove_in_this_process
from tests.handmade_package import write_package
from tests.nightly import nightly, sampled
from tests.routed_package import Fault, write_routed
from tests.runtime.tensorrt.engines import write_engine
from tests.text.export_small import export_directory, greedy
from tests.text.model_directories import write_plain_torch, write_weights
from tests.text.tokenizer_files import write_tokenizer

OTLP = "http://collector:4318"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return write_package(tmp_path / "my package").root


def test_bundle_is_written_and_found_good(package: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(check, "find_server", lambda given: None)  # whatever this machine has
    report = moh_deploy.bundle(package, tmp_path / "b", instances=2, threads=3, max_batch=8)
    settings = read_bundle(tmp_path / "b").settings
    assert report.bundle.settings == settings
    assert (settings.name, settings.instances, settings.threads) == ("my-package", 2, 3)
    assert settings.max_batch == 8
    assert f"tritonserver --model-repository={tmp_path / 'b' / 'repository'}" in report.start
    assert moh_deploy.check_bundle(tmp_path / "b").failure is None


def test_printed_paths_hold_whatever_the_folder_is_called(package: Path, tmp_path: Path):
    root = tmp_path / "my $bundle's"
    report = moh_deploy.bundle(package, root)
    assert shlex.split(report.start) == [
        "tritonserver",
        f"--model-repository={root / 'repository'}",
    ]
    texts = [block.text for block in report.document().blocks if isinstance(block, Text)]
    assert f"moh-deploy bundle --check {shlex.quote(str(root))}" in "\n".join(texts)


def test_bundle_of_an_engine_says_that_no_server_has_run_one(tmp_path: Path):
    report = moh_deploy.bundle(write_engine(tmp_path / "engine"), tmp_path / "b")
    assert NEVER_RUN in report.to_markdown()


def test_guard_is_the_usual_one_by_its_name(package: Path, tmp_path: Path):
    beside = {"shadow": package, "shadow_share": 0.5, "otlp": OTLP}
    moh_deploy.bundle(package, tmp_path / "b", guard="default", **beside)
    settings = read_bundle(tmp_path / "b").settings
    assert settings.otlp == OTLP
    assert (settings.guard, settings.policy, settings.drill) == (True, None, False)
    assert (settings.shadow, settings.shadow_share) == ("shadow", 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "tfserving"}, "target is 'tfserving', expected triton"),
        ({"instances": 0}, "instances is 0, expected 1 or more"),
        ({"threads": 0}, "threads is 0, expected 1 or more"),
        ({"max_delay_ms": -1}, "max_delay_ms is -1, expected 0 or more"),
        ({"max_delay_ms": float("inf")}, "max_delay_ms is inf, expected 1e+09 at most"),
        ({"max_delay_ms": float("nan")}, "max_delay_ms is nan, expected 1e+09 at most"),
        ({"shadow_share": 0}, "shadow_share is 0, expected more than 0"),
        ({"drill": True}, "drill is for a guard, and none is given"),
        ({"reference": "r.json", "sample_every": 0}, "routing that is read: sample_every is 0"),
        ({"backend": "tensorrt"}, "backend is 'tensorrt', but package"),
        ({"otlp": "collector:4318"}, "--otlp is 'collector:4318', expected the address"),
        ({"backend": "onnxruntime"}, "backend is 'onnxruntime', but package"),
    ],
)
def test_wrong_option_is_refused(
    package: Path, tmp_path: Path, options: dict[str, Any], message: str
):
    with pytest.raises(ConfigError) as error:
        moh_deploy.bundle(package, tmp_path / "b", **options)
    assert message in error.value.message
    assert not (tmp_path / "b").exists()


@sampled(2)
@pytest.mark.parametrize(
    "fault", ["top_k off by one", "wrong scale", "one gate off by 1 %", "stale weights"]
)
def test_package_that_verify_refuses_is_not_bundled(tmp_path: Path, fault: Fault):
    package = write_routed(tmp_path / "package", fault).root
    with pytest.raises(ValidationError, match="the package to start from, is not equal"):
        moh_deploy.bundle(package, tmp_path / "b")
    with pytest.raises(ValidationError, match="the package to start from, is not equal"):
        moh_deploy.bundle_for_genai(package, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_what_is_no_bundle_cannot_be_checked(package: Path):
    with pytest.raises(PackageError, match="is no bundle"):
        moh_deploy.check_bundle(package)


# onnxruntime-genai itself runs a bundle: its greedy tokens are those of the model in PyTorch.


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
    assert [list(item) for item in found] == [greedy(model, prompt, STEPS) for prompt in PROMPTS]
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
    weights = {name: item.clone() for name, item in original[1].state_dict().items()}
    write_plain_torch(tmp_path / "other")
    weights["head.weight"] = weights["head.weight"].roll(1, dims=0)
    write_weights(tmp_path / "other", weights)
    other = moh_deploy.load_original(tmp_path / "other", trust_code=True, task="text-generation")
    moh_deploy.bundle_for_genai(exported.root, tmp_path / "b")
    compared = moh_deploy.verify_genai_bundle(tmp_path / "b", against=other)
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
