"""The sentence on where an error enters says what was measured, and names nobody falsely."""

from dataclasses import replace

import pytest

from moh_deploy.graph.layer_reads import LayerSources
from moh_deploy.validate.compare.diagnosis import diagnosis
from moh_deploy.validate.compare.parity_result import LayerParity, LayerPart, OutputParity

GOOD = replace(
    LayerParity("a", "0", 8, 8, 0, 0, 0.0, 1e-6, forced=True),
    score_error=1e-8,
    score_tolerance=1e-7,
    attention_error=1e-7,
    attention_tolerance=1e-6,
)
OUTPUT = OutputParity("y", "0", 0.0, 0.0, 1e-4)
OFF = replace(OUTPUT, reason="it is off.")


def layers(**wrong: tuple[LayerPart, ...]) -> list[LayerParity]:
    found = []
    for path in ("a", "b", "c"):
        parts = wrong.get(path, ())
        found.append(replace(GOOD, path=path, wrong=parts, reason="no." if parts else None))
    return found


def each(found: list[LayerParity], **changes: object) -> list[LayerParity]:
    return [replace(layer, **changes) for layer in found]


# Each layer reads the input and the layers before it, as in a residual stream.
CHAIN = [LayerSources(frozenset(["x", *range(i)]), frozenset(["x", *range(i)])) for i in range(3)]


NARROW, NEAR = {"score_error": 0.9e-7}, {"attention_error": 0.9e-6}
WRONG_B = layers(b=("attention",))
NARROW_A = replace(WRONG_B[0], **NARROW, **NEAR)
UNTOLD, ALL = {"undecided_tokens": 1, "reason": "no data."}, ("scores", "attention")


@pytest.mark.parametrize(
    ("found", "output", "sentence"),
    [
        (layers(b=("attention",), c=ALL), OFF, "'b' is the first that differs, and its router agr"),
        # With its router it may have been given wrong inputs.
        (layers(b=ALL), OFF, "is behind the attention of layer 'a', and no later than that of"),
        (layers(a=ALL), OFF, "is in that layer, or between it and input 'x'."),
        # Routers are blamed only where every attention agrees.
        (layers(b=("scores",)), OUTPUT, "and outputs agree: the error is in the router of layer '"),
        (layers(a=("choice",), b=("attention",)), OUTPUT, "'b' is the first that differs, and the"),
        (layers(), OFF, "the error is behind the attention of the last layer, 'c'."),
        (each(layers(), attention_error=None), OFF, "of layer 'a', 'b', 'c' could not be."),
        # Nothing that differs is told apart from errors that add up.
        (each(layers(), **UNTOLD), OUTPUT, "nothing that could be judged differs."),
        (layers(), OUTPUT, "nearest to it is layer 'a', with 10% of"),
        # What agrees narrowly rules nothing out; but the router of b agrees clearly, so what it
        # reads is right.
        ([NARROW_A, *WRONG_B[1:]], OFF, "its router agrees: the error is in that layer"),
        (each(WRONG_B, **NARROW), OFF, "is behind the attention of layer 'a', and no later"),
        (each(WRONG_B, **NARROW, **NEAR), OFF, "too near to its tolerance to rule that out"),
        (each(layers(), **NEAR), OFF, "attention agrees, but not clearly enough to say where the"),
    ],
)
def test_sentence_says_what_was_measured(
    found: list[LayerParity], output: OutputParity, sentence: str
):
    assert sentence in diagnosis(found, [output], CHAIN)


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
