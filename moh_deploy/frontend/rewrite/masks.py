"""Find the input of a program that tells valid tokens, and what its other masks are tried with."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch.export import ExportedProgram

from moh_deploy.errors import ConfigError
from moh_deploy.frontend import limits
from moh_deploy.frontend.fx.axes import product
from moh_deploy.frontend.inputs.padding import named_tokens, tokens_of
from moh_deploy.frontend.inputs.sizes import resize_inputs
from moh_deploy.frontend.load.model import ModelInput, example_sizes
from moh_deploy.frontend.recognize import MoHLayer
from moh_deploy.frontend.recognize.mask_trials import MaskTrials
from moh_deploy.frontend.recognize.padding import padding_inputs
from moh_deploy.frontend.rewrite import Rewrite


def with_padding_input(
    program: ExportedProgram,
    layers: Sequence[MoHLayer],
    inputs: Sequence[ModelInput],
    find_padding: bool,
) -> tuple[Sequence[ModelInput], tuple[str, ...]]:
    """Mark the input that the graph shows to tell valid tokens, and how.

    Of several, the first is taken where all have the same axes and agree in the example: leaving
    out what is padding by one of them is safe, and the others' padding is compared. Where it hides
    all tokens of the example, some become valid.

    Returns:
        The inputs, and the names of all that the graph shows to do so, unless the user named one.

    Raises:
        ConfigError: The user named a mask, and the graph shows the opposite.
    """
    is_named = any(item.says_valid for item in inputs)
    if not is_named and not find_padding:
        return inputs, ()
    places = padding_inputs(program, layers, [item.value for item in inputs])
    shown = [replace(inputs[at], says_valid=True, marks_padding=places[at]) for at in places]
    if is_named:
        for at, right in zip(places, shown, strict=True):
            item = inputs[at]
            if item.says_valid and item.marks_padding != right.marks_padding:
                raise ConfigError(
                    f"valid_tokens is '{item.mask_name}', but the graph shows that '{item.name}' is"
                    f" {int(right.marks_padding)} for padding: there no attention of an MoH layer"
                    " reads a token.",
                    hint=f"Name it '{right.mask_name}', or leave the option out.",
                )
        return inputs, ()
    agree = all(
        item.dims == shown[0].dims
        and torch.equal(item.value != item.marks_padding, shown[0].value != shown[0].marks_padding)
        for item in shown
    )
    taken = shown[0] if shown and agree else None
    if taken is not None and not tokens_of(taken).mask.any():
        # As of a bool that was made up: without a valid token nothing is measured or compared.
        (taken,) = named_tokens([taken], taken.mask_name, made=True)
    marked = tuple(taken if taken and item.name == taken.name else item for item in inputs)
    return marked, tuple(item.mask_name for item in shown)


def mask_trials(program: ExportedProgram, inputs: Sequence[ModelInput]) -> MaskTrials:
    """Return what masks of a program are tried with."""
    relations = limits.Relations.of(program, inputs)
    at = next((place for place, item in enumerate(inputs) if item.says_valid), None)

    def resize(sizes: Mapping[str, int]) -> list[torch.Tensor]:
        resized = resize_inputs(inputs, relations.complete(sizes), new_ids=False)
        return [item.value for item in resized]

    return MaskTrials(
        [item.value for item in inputs],
        example_sizes(inputs),
        limits.dim_ranges(program, inputs),
        resize,
        None if at is None else (at, inputs[at].marks_padding),
    )


def with_new_tokens(
    program: ExportedProgram, rewrites: Sequence[Rewrite], inputs: Sequence[ModelInput]
) -> tuple[ModelInput, ...]:
    """Note which dimension has the last tokens of the mask of valid ones, where layers show it.

    They are queries that count their places from the last key, of keys that the mask hides.
    """
    names = {size: str(expr) for _, _, expr, size in limits.dynamic_axes(program, inputs)}
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    marked = list(inputs)
    for place, name in enumerate(program.graph_signature.user_inputs):
        item = inputs[place]
        tokens = {
            names.get(product(rewrite.layer.tokens))
            for rewrite in rewrites
            if rewrite.hidden_by == placeholders[name]
        } - {item.dims.get(1)}
        if item.says_valid and len(tokens) == 1:
            marked[place] = replace(item, new_tokens=tokens.pop())
    return tuple(marked)
