"""The sentence on where an error enters says what was measured, and names nobody falsely."""

from __future__ import annotations

from dataclasses import replace

from moh_deploy.graph.layer_reads import LayerSources
from moh_deploy.validate.compare.diagnosis import diagnosis
from moh_deploy.validate.compare.parity_result import LayerParity, LayerPart, OutputParity

GOOD = LayerParity(
    "a",
    "0",
    8,
    8,
    0,
    0,
    0.0,
    1e-6,
    forced=True,
    score_error=1e-8,
    score_tolerance=1e-7,
    attention_error=1e-7,
    attention_tolerance=1e-6,
)
OUTPUT = OutputParity("y", "0", 0.0, 0.0, 1e-4)
OFF = replace(OUTPUT, reason="it is off.")


def layers(**wrong: tuple[LayerPart, ...]) -> list[LayerParity]:
    return [
        replace(
            GOOD, path=path, wrong=wrong.get(path, ()), reason="no." if wrong.get(path) else None
        )
        for path in ("a", "b", "c")
    ]


# Each layer reads the input and the layers before it, as in a residual stream.
CHAIN = [LayerSources(frozenset(["x", *range(i)]), frozenset(["x", *range(i)])) for i in range(3)]


def test_attention_that_differs_alone_is_where_the_error_is():
    found = diagnosis(layers(b=("attention",), c=("scores", "attention")), [OFF], CHAIN)
    assert found.endswith(
        "the attention of layer 'b' is the first that differs, and its router agrees: the error is"
        " in that layer."
    )


def test_attention_that_differs_with_its_router_may_have_been_given_wrong_inputs():
    found = diagnosis(layers(b=("scores", "attention")), [OFF], CHAIN)
    assert (
        "the error is behind the attention of layer 'a', and no later than that of layer 'b'."
        in (found)
    )


def test_first_layer_has_no_other_before_it():
    found = diagnosis(layers(a=("scores", "attention")), [OFF], CHAIN)
    assert "the error is in that layer, or between it and input 'x'." in found


def test_keys_of_another_stream_are_not_cleared_by_the_router():
    # The decoder's layer c reads b, and its keys are of the encoder's layer a.
    sources = [
        LayerSources(frozenset(["x"]), frozenset(["x"])),
        LayerSources(frozenset(["z"]), frozenset(["z"])),
        LayerSources(frozenset(["x", "z", 0, 1]), frozenset(["z", 1])),
    ]
    found = diagnosis(layers(c=("attention",)), [OFF], sources)
    assert "behind the attention of layer 'a', and no later than that of layer 'c'" in found
    assert "'b'" not in found


def test_routers_are_blamed_only_where_every_attention_agrees():
    found = diagnosis(layers(b=("scores",)), [OUTPUT], CHAIN)
    assert found.endswith("attention and outputs agree: the error is in the router of layer 'b'.")
    found = diagnosis(layers(a=("choice",), b=("attention",)), [OUTPUT], CHAIN)
    assert "'b' is the first that differs, and the router of layer 'a' before it" in found


def test_error_behind_all_layers_is_said_to_be_there():
    found = diagnosis(layers(), [OFF], CHAIN)
    assert found.endswith("the error is behind the attention of the last layer, 'c'.")


def test_layer_that_could_not_be_compared_is_named_as_such():
    blind = [replace(one, attention_error=None) for one in layers()]
    found = diagnosis(blind, [OFF], CHAIN)
    assert "the attention of layer 'a', 'b', 'c' could not be." in found


def test_nothing_that_differs_is_told_apart_from_errors_that_add_up():
    undecided = [replace(one, undecided_tokens=1, reason="no data.") for one in layers()]
    assert "nothing that could be judged differs." in diagnosis(undecided, [OUTPUT], CHAIN)
    assert "nearest to it is layer 'a', with 10% of" in diagnosis(layers(), [OUTPUT], CHAIN)


def test_what_agrees_narrowly_rules_nothing_out():
    near = 0.9 * 1e-6
    found = diagnosis(
        [
            replace(one, attention_error=near, score_error=0.9e-7) if one.path == "a" else one
            for one in layers(b=("attention",))
        ],
        [OFF],
        CHAIN,
    )
    # The router of b agrees clearly, so what it reads is right: a is not to blame.
    assert "its router agrees: the error is in that layer" in found
    narrow = [replace(one, score_error=0.9e-7) for one in layers(b=("attention",))]
    assert "is behind the attention of layer 'a', and no later" in diagnosis(narrow, [OFF], CHAIN)
    all_near = [replace(one, attention_error=near, score_error=0.9e-7) for one in narrow]
    assert "too near to its tolerance to rule that out" in diagnosis(all_near, [OFF], CHAIN)


def test_outputs_behind_attentions_that_agree_narrowly_accuse_nobody():
    near = [replace(one, attention_error=0.9e-6) for one in layers()]
    found = diagnosis(near, [OFF], CHAIN)
    assert "every attention agrees, but not clearly enough to say where the error is" in found
