"""Fields of a plugin: what each creator takes, refuses, and says of it."""

from pathlib import Path

import numpy as np
import pytest

import moh_deploy
from moh_deploy.ops import OPS
from tests.cuda.trt.host_plugin import RUNTIME, Harness

PLUGINS = ("MoHRouter", "MoHAttention", "MoHAggregatedAttention")
GOOD = {
    "MoHRouter": {"top_k": 3, "num_shared_heads": 2, "gate_mode": "weighted"},
    "MoHAttention": {"q_num_heads": 6, "kv_num_heads": 3, "scale": 0.25, "is_causal": 0},
    "MoHAggregatedAttention": {
        "num_heads": 3,
        "height": 5,
        "width": 7,
        "kernel_height": 3,
        "kernel_width": 5,
        "normalize": 1,
        "epsilon": 1e-6,
    },
}
EXTRA = {"MoHAttention": ["open_share", "portable"]}

pytestmark = pytest.mark.usefixtures("kernels")


def test_there_is_a_creator_for_each_op(harness: Harness):
    assert [words[:3] for words in harness.describe()] == [[op, "1", "moh"] for op in PLUGINS]


def test_creators_are_of_the_interface_that_loads_everywhere(harness: Harness):
    assert harness.kinds() == ["PLUGIN CREATOR_V3ONE"] * 3


def test_fields_are_the_attributes_of_the_ops(harness: Harness):
    """TensorRT's parser passes on attributes that a creator names, and no others."""
    for op, _, _, *fields in harness.describe():
        own = [attribute.name for attribute in OPS[op].attributes]
        assert fields == [*own, *EXTRA.get(op, []), "present_inputs"]


@pytest.mark.parametrize("op", PLUGINS)
def test_a_plugin_knows_its_name(harness: Harness, op: str):
    assert harness.create(op, GOOD[op]).name == f"{op} 1 moh"
    assert harness.log() == ""


@pytest.mark.parametrize("op", PLUGINS)
def test_every_required_field_is_missed(harness: Harness, op: str):
    required = [a.name for a in OPS[op].attributes if a.default is None]
    for name in required:
        fields = {key: value for key, value in GOOD[op].items() if key != name}
        assert harness.create(op, fields, layer="blocks.3") is None
        assert f"E {op} (blocks.3): field {name} is missing" in harness.log()


@pytest.mark.parametrize("op", PLUGINS)
def test_fields_with_a_default_may_be_absent(harness: Harness, op: str):
    optional = {a.name: a.default for a in OPS[op].attributes if a.default is not None}
    short = {key: value for key, value in GOOD[op].items() if key not in optional}
    made = harness.create(op, short).serialize()
    given = harness.create(op, {**short, **optional}).serialize()
    assert made == given


BAD = [
    ("MoHRouter", "top_k", -1, "field top_k is -1; expected 0 or more."),
    ("MoHRouter", "num_shared_heads", -2, "field num_shared_heads is -2; expected 0 or more."),
    ("MoHRouter", "gate_mode", "hard", "field gate_mode is 'hard'; expected weighted or mask."),
    ("MoHRouter", "top_k", 1.5, "field top_k is 1.5; expected an int of 32 bits."),
    ("MoHAttention", "q_num_heads", 4, "is 4; expected a multiple of kv_num_heads, 3."),
    ("MoHAttention", "kv_num_heads", 0, "field kv_num_heads is 0; expected at least 1."),
    ("MoHAttention", "is_causal", 2, "field is_causal is 2; expected 0 or 1."),
    ("MoHAttention", "scale", 3, "field scale is 3; expected a finite float."),
    ("MoHAttention", "scale", np.inf, "field scale is inf; expected a finite float."),
    ("MoHAttention", "open_share", 1.5, "field open_share is 1.5; expected 0 to 1."),
    ("MoHAttention", "heads", 3, "field heads is unknown; expected one of q_num_heads, "),
    ("MoHAggregatedAttention", "width", 0, "field width is 0; expected at least 1."),
    ("MoHAggregatedAttention", "kernel_width", 4, "kernel_width is 4; expected an odd number"),
    ("MoHAggregatedAttention", "epsilon", 0.0, "field epsilon is 0; expected more than 0."),
    ("MoHAggregatedAttention", "normalize", -1, "field normalize is -1; expected 0 or 1."),
]


@pytest.mark.parametrize(("op", "name", "value", "message"), BAD)
def test_a_bad_field_is_refused_with_op_field_and_value(
    harness: Harness, op: str, name: str, value: object, message: str
):
    assert harness.create(op, {**GOOD[op], name: value}, layer="blocks.0.attn") is None
    log = harness.log()
    assert log.startswith(f"E {op} (blocks.0.attn): ")
    assert message in log


def test_ints_of_64_bits_are_taken(harness: Harness):
    wide = {"top_k": "int64", "num_shared_heads": "int64"}
    plugin = harness.create("MoHRouter", GOOD["MoHRouter"], types=wide)
    assert plugin.serialize()["top_k"] == 3


def test_an_int_beyond_32_bits_is_refused(harness: Harness):
    fields = {**GOOD["MoHRouter"], "top_k": 2**40}
    assert harness.create("MoHRouter", fields, types={"top_k": "int64"}) is None
    assert "field top_k is 1099511627776; expected an int of 32 bits." in harness.log()


@pytest.mark.parametrize("text", ["mask", b"mask", b"mask\0\0"])
def test_a_text_may_end_with_zeros(harness: Harness, text: str | bytes):
    plugin = harness.create("MoHRouter", {**GOOD["MoHRouter"], "gate_mode": text})
    assert plugin.serialize()["gate_mode"] == 1


def test_several_numbers_are_not_one(harness: Harness):
    fields = {**GOOD["MoHAttention"], "scale": np.ones(2, np.float32)}
    assert harness.create("MoHAttention", fields) is None
    assert "field scale has 2 numbers; expected 1." in harness.log()


@pytest.mark.parametrize("op", PLUGINS)
def test_an_engine_keeps_numbers_that_make_the_same_plugin(harness: Harness, op: str):
    kept = harness.create(op, GOOD[op]).serialize()
    assert all(isinstance(value, int | float) for value in kept.values())
    again = harness.create(op, kept, phase=RUNTIME).serialize()
    assert again == kept
    for name, value in GOOD[op].items():
        assert kept[name] == (0 if value == "weighted" else pytest.approx(value))


def test_an_engine_keeps_which_inputs_there_are(harness: Harness):
    plugin = harness.create("MoHRouter", {**GOOD["MoHRouter"], "present_inputs": 0b101})
    assert plugin.serialize()["present_inputs"] == 0b101


@pytest.mark.parametrize("op", PLUGINS)
def test_a_clone_is_the_same_and_outlives_the_original(harness: Harness, op: str):
    plugin = harness.create(op, GOOD[op])
    kept, clone = plugin.serialize(), plugin.clone()
    del plugin
    assert clone.serialize() == kept
    assert clone.name == f"{op} 1 moh"


def test_timing_ids_differ_where_fields_do(harness: Harness):
    ids = [
        harness.create("MoHAttention", {**GOOD["MoHAttention"], **changed}).timing_id
        for changed in ({}, {"is_causal": 1}, {"scale": 0.5}, {"open_share": 0.5}, {})
    ]
    assert ids[0] == ids[4]
    assert len(set(ids)) == 4


def test_timing_id_begins_with_the_digest_of_the_library(harness: Harness, fake_library: Path):
    """Another library may hold other kernels: times in a cache are of one."""
    timing_id = harness.create("MoHRouter", GOOD["MoHRouter"]).timing_id
    library, field, _ = timing_id.split(", ", 2)
    name, version, digest = library.split(" ")
    assert (name, version, field) == ("moh-deploy", moh_deploy.__version__, "top_k=3")
    assert len(digest) == 40
    assert bytes.fromhex(digest) in fake_library.read_bytes()
