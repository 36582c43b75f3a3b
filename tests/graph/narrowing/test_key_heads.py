"""Each query head that stays reads the keys of the key head that it read before."""

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from moh_deploy.graph.load_model import infer_types
from moh_deploy.graph.narrowing.layer_edit import KeyHeads
from moh_deploy.graph.narrowing.narrowing import Narrowing, NotNarrowedError
from moh_deploy.graph.narrowing.rules import RULES
from moh_deploy.system.npz import Array

HEADS, SIZE, BATCH, LENGTH = 3, 4, 2, 5

FORMS = {
    "packed": "k = MatMul (x, W)",
    "heads first": "a = MatMul (x, W)\n c = Reshape (a, heads)\n"
    " k = Transpose <perm = [0, 2, 1, 3]> (c)",
    "of a cache": "k = Identity (past)",
}
NOT_FOLLOWED = "a = MatMul (x, W)\n k = Softmax <axis = 2> (a)"

# Query heads that read each key head, and the key heads that the attention reads then.
GROUPS = {
    "all alike": ({0: 2, 1: 2, 2: 2}, [0, 1, 2]),
    "one gone": ({0: 4, 2: 4}, [0, 2]),
    "the first gone": ({1: 1, 2: 1}, [1, 2]),
    "one left": ({1: 3}, [1]),
    "of two sizes": ({0: 4, 1: 2, 2: 2}, [0, 0, 1, 2]),
    "of two sizes, one gone": ({0: 2, 2: 4}, [0, 2, 2]),
    "of two sizes, not in order": ({2: 6, 0: 3}, [0, 2, 2]),
    "without a common divisor": ({0: 3, 1: 2}, [0, 0, 0, 1, 1]),
}


def model_of(form: str, *, returned: bool = False) -> ir.Model:
    """Return a model that makes keys k, by head [2, 3, 5, 4] or packed [2, 5, 12]."""
    outputs = "float y" + (", float k" if returned else "")
    proto = parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 20]>
        g (float[2, 5, 8] x, float[2, 3, 5, 4] past) => ({outputs}) {{
          {FORMS.get(form, form)}
          y = Identity (x)
        }}"""
    )
    for output in proto.graph.output:
        output.type.tensor_type.ClearField("shape")
    weights = np.random.default_rng(0).standard_normal((8, HEADS * SIZE)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weights, "W"))
    heads = np.array([0, 0, HEADS, SIZE])
    proto.graph.initializer.append(numpy_helper.from_array(heads, "heads"))
    model = ir.from_proto(proto)
    infer_types(model)
    return model


def key_heads(model: ir.Model, used: dict[int, int]) -> tuple[KeyHeads, ir.Value]:
    (keys,) = (value for node in model.graph for value in node.outputs if value.name == "k")
    return KeyHeads(Narrowing(model, RULES), frozenset(), HEADS, used), keys


def computed(model: ir.Model, *values: ir.Value) -> list[Array]:
    """Return what the model computes for values."""
    proto = ir.to_proto(model)
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=value.name) for value in values)
    rng = np.random.default_rng(1)
    inputs = {"x": (BATCH, LENGTH, 8), "past": (BATCH, HEADS, LENGTH, SIZE)}
    fed = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in inputs.items()}
    found: list[Array] = ReferenceEvaluator(proto).run(None, fed)  # type: ignore[assignment]
    return found


def by_head(keys: Array) -> Array:
    """Return [B, heads, T, size]."""
    if keys.ndim == 4:
        return keys
    return keys.reshape(BATCH, LENGTH, -1, SIZE).transpose(0, 2, 1, 3)


@pytest.mark.parametrize("group", GROUPS)
def test_attention_reads_the_keys_of_its_heads(group: str):
    used, expected = GROUPS[group]
    # Groups of the smallest size: with a head fewer they would not be of one size.
    assert all(used[head] % expected.count(head) == 0 for head in used)
    assert len({used[head] // expected.count(head) for head in used}) == 1
    for form, returned in itertools.product(FORMS, (False, True)):
        model = model_of(form, returned=returned)
        heads, keys = key_heads(model, used)
        read = heads.of(keys)
        parts = [value for node in model.graph if node.op_type == "Split" for value in node.outputs]
        before, after, *found = computed(model, keys, read, *parts)
        assert [tuple(part.shape or ()) for part in parts] == [array.shape for array in found]
        np.testing.assert_allclose(by_head(after), by_head(before)[:, expected], atol=1e-6)
        assert heads.num_heads == len(expected)
        assert tuple(read.shape or ()) == after.shape


@pytest.mark.parametrize("group", GROUPS)
def test_heads_that_nothing_reads_are_not_computed(group: str):
    used, _ = GROUPS[group]
    for form in FORMS:
        model = model_of(form)
        heads, keys = key_heads(model, used)
        heads.of(keys)
        sizes = {tuple(weight.shape or ()) for weight in model.graph.initializers.values()}
        is_cut = form != "of a cache" and len(used) < HEADS
        assert ((8, len(used) * SIZE) in sizes) == is_cut or len(used) == HEADS
        # Nothing is split and joined where each head that is left is read once.
        split = [node for node in model.graph if node.op_type == "Split"]
        once = heads.num_heads == len(used)
        assert len(split) == (0 if once and (is_cut or len(used) == HEADS) else 1)


def test_notes_say_why_heads_are_repeated_or_stay():
    heads, _ = key_heads(model_of("packed"), {0: 4, 2: 2})
    assert heads.notes == [
        "its 2 key/value heads are repeated to 3: the groups that are left are not of one size"
    ]
    alike, keys = key_heads(model_of("packed"), {0: 2, 2: 2})
    alike.of(keys)
    assert alike.notes == []
    returned, keys = key_heads(model_of("heads first", returned=True), {1: 2})
    returned.of(keys)
    assert returned.notes == [
        "'k' stays whole, and kept heads are copied: something else reads all heads"
    ]
    cached, keys = key_heads(model_of("of a cache"), {1: 2})
    cached.of(keys)
    assert cached.notes == [
        "'k' stays whole, and kept heads are copied: 'past' is an input of the model"
    ]


def test_keys_that_are_an_input_of_the_model_are_refused():
    model = model_of("packed")
    heads, _ = key_heads(model, {1: 2})
    past = model.graph.inputs[1]
    with pytest.raises(NotNarrowedError, match="'past' is an input of the model"):
        heads.of(past)
    assert key_heads(model, {0: 2, 1: 2, 2: 2})[0].of(past) is past


def test_keys_whose_heads_are_not_apart_are_refused():
    heads, keys = key_heads(model_of(NOT_FOLLOWED), {1: 2})
    with pytest.raises(NotNarrowedError, match="'k' is normalised over all heads together"):
        heads.of(keys)


def test_readers_that_end_with_the_layer_do_not_keep_heads():
    model = model_of("packed", returned=True)
    (keys,) = (value for node in model.graph for value in node.outputs if value.name == "k")
    model.graph.outputs.remove(keys)
    reader = ir.Node("", "Neg", [keys])
    model.graph.append(reader)
    (end,) = reader.outputs
    end.name = "end"
    model.graph.outputs.append(end)
    heads = KeyHeads(Narrowing(model, RULES), frozenset({end}), HEADS, {1: 2})
    heads.of(keys)
    assert heads.notes == []
    heads = KeyHeads(Narrowing(model, RULES), frozenset(), HEADS, {1: 2})
    heads.of(keys)
    assert "something else reads all heads" in heads.notes[0]
