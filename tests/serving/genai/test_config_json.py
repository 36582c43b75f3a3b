"""What genai_config.json says follows from the manifest, and what genai cannot run is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from moh_deploy.errors import ConfigError, PackageError
from moh_deploy.package import CacheBuffer, CachesInPlace, DimSum, TensorInfo
from moh_deploy.serving.genai.bundle import check_decoder, genai_config_text, search_options
from tests.serving.genai.decoder_package import ABOUT, manifest


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
    sizes = [decoder[f"num_{one}"] for one in ("hidden_layers", "key_value_heads")]
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
        inputs=tuple(one for one in made.inputs if one.name != name),
        outputs=tuple(one for one in made.outputs if one.name != name),
    )


def renamed(before: str, after: str):
    made = manifest()
    return replace(
        made,
        **{
            side: tuple(
                replace(one, name=one.name.replace(before, after)) for one in getattr(made, side)
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
