"""A bundle for genai holds what `og.Model` reads, and nothing of it may change."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from moh_deploy import native
from moh_deploy.errors import ConfigError, PackageError
from moh_deploy.package import CacheBuffer, CachesInPlace, DimSum, TensorInfo
from moh_deploy.serving.genai.bundle import (
    check_decoder,
    genai_config_text,
    is_genai_bundle,
    read_genai_bundle,
    search_options,
    write_genai_bundle,
)
from tests.serving.genai.decoder_package import ABOUT, manifest, package

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


# What genai_config.json says follows from the manifest, and what genai cannot run is refused.


def config(made=None, **given) -> dict:
    made = made or manifest()
    interface = check_decoder(made, "p")
    return json.loads(genai_config_text(made, interface, "package/model.onnx", **given))


def test_sizes_and_tokens_are_the_manifests():
    model = config()["model"]
    decoder = model.pop("decoder")
    assert model == {
        "type": "decoder",
        "vocab_size": 97,
        "context_length": 128,
        "eos_token_id": [2, 5],
        "bos_token_id": 1,
        "pad_token_id": 2,
    }
    sizes = [decoder[f"num_{item}"] for item in ("hidden_layers", "key_value_heads")]
    assert (*sizes, decoder["head_size"]) == (2, 2, 8)
    assert decoder["filename"] == "package/model.onnx"


def test_padding_is_its_own_token_where_there_is_one():
    about = replace(ABOUT, pad_token_id=0)
    assert config(manifest(text_generation=about))["model"]["pad_token_id"] == 0


def test_kernels_are_told_what_a_session_of_ours_tells_them():
    made = manifest(compute_type="bfloat16")
    options = config(made, library="libmoh.so", threads=3)["model"]["decoder"]["session_options"]
    assert options == {
        "intra_op_num_threads": 3,
        "custom_ops_library": "libmoh.so",
        "moh.compute_type": "bfloat16",
        "moh.domains": "moh,moh.9",
    }
    assert config()["model"]["decoder"]["session_options"] == {}


IN_PLACE = CachesInPlace((CacheBuffer("a", "b", 2),), "total - seq", "seq", most_tokens=50)


@pytest.mark.parametrize(
    ("limits", "most"),
    [
        ({"dim_ranges": {"total": (1, 100)}}, 100),
        ({"dim_ranges": {"total": (1, 1000), "past": (0, None), "seq": (1, None)}}, 128),
        ({"dim_ranges": {"past": (0, 63)}}, 64),  # and a step behind it
        ({"dim_sums": (DimSum(("past", "seq"), 90),)}, 90),
        ({"dim_sums": (DimSum(("batch", "past"), 90),)}, 128),
        ({"dim_ranges": {"seq": (1, 32)}}, 32),  # genai reads a prompt at once
        ({"caches": IN_PLACE}, 50),
        ({"text_generation": replace(ABOUT, context_length=None), "caches": IN_PLACE}, 50),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "",
)
def test_smallest_limit_of_config_and_trace_is_the_context(limits: dict, most: int):
    written = config(manifest(**limits))
    assert written["model"]["context_length"] == written["search"]["max_length"] == most


def test_buffer_is_shared_by_caches_in_place_alone():
    assert config()["search"]["past_present_share_buffer"] is False
    buffers = CachesInPlace((CacheBuffer("a", "b", 2),), "total - seq", "seq")
    assert config(manifest(caches=buffers))["search"]["past_present_share_buffer"] is True


def test_choice_of_tokens_is_the_authors(tmp_path: Path):
    file = tmp_path / "generation_config.json"
    assert search_options(file) == {}
    file.write_text('{"do_sample": true, "top_p": 0.9, "top_k": null, "max_length": 20}')
    found = search_options(file)
    assert found == {"do_sample": True, "top_p": 0.9}
    assert config(search=found)["search"] == {
        **found,
        "max_length": 128,
        "past_present_share_buffer": False,
    }
    file.write_text("[]")
    with pytest.raises(PackageError, match="is no JSON object"):
        search_options(file)


def without(name: str):
    made = manifest()
    return replace(
        made,
        inputs=tuple(info for info in made.inputs if info.name != name),
        outputs=tuple(output for output in made.outputs if output.name != name),
    )


def renamed(before: str, after: str):
    made = manifest()
    return replace(
        made,
        **{
            side: tuple(
                replace(item, name=item.name.replace(before, after)) for item in getattr(made, side)
            )
            for side in ("inputs", "outputs")
        },
    )


def with_input(name: str):
    made = manifest()
    return replace(made, inputs=(*made.inputs, TensorInfo(name, "int64", ("batch", "seq"))))


def with_other_heads():
    made = manifest()
    return replace(
        made, inputs=(*made.inputs[:-1], replace(made.inputs[-1], shape=("batch", 4, "past", 8)))
    )


@pytest.mark.parametrize(
    ("made", "error", "words"),
    [
        (without("input_ids"), PackageError, "it has no input input_ids"),
        (without("attention_mask"), PackageError, "it has no input attention_mask"),
        (without("logits"), PackageError, "it has no output logits"),
        (without("present.1.value"), PackageError, "it has no output present.1.value"),
        (renamed("past_key_values", "past"), PackageError, "no input past_key_values.0.key"),
        (renamed(".1.", ".7."), PackageError, "has a cache past_key_values.7.key"),
        (with_input("position_ids"), PackageError, "takes 'position_ids'"),
        (manifest(text_generation=None), PackageError, "generates no text"),
        (
            manifest(text_generation=replace(ABOUT, context_length=None)),
            ConfigError,
            "how many tokens",
        ),
        (manifest(text_generation=replace(ABOUT, eos_token_ids=())), ConfigError, "ends a text"),
        (with_other_heads(), ConfigError, "2 heads of 8 and 4 heads of 8; genai has one number"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_what_genai_cannot_run_is_refused(made, error, words: str):
    with pytest.raises(error) as refused:
        check_decoder(made, "p")
    assert words in refused.value.message
