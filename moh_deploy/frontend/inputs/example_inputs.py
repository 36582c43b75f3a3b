"""Make the example inputs of a loaded model, as the user describes them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from moh_deploy.config.export_config import ExportConfig
from moh_deploy.errors import ConfigError, ExportError
from moh_deploy.frontend.inputs.arguments import BoundInputs, bind, flattened
from moh_deploy.frontend.inputs.given_inputs import GivenInputs, given_values, with_dynamic_axes
from moh_deploy.frontend.inputs.npz_inputs import inputs_from_npz
from moh_deploy.frontend.inputs.onnx_inputs import fitted_inputs, made_inputs
from moh_deploy.frontend.inputs.padding import named_tokens
from moh_deploy.frontend.inputs.program_inputs import inputs_from_program, with_values
from moh_deploy.frontend.load.decoder import Decoder
from moh_deploy.frontend.load.model import LoadedModel, ModelInput, example_sizes
from moh_deploy.system.user_code import describe_error
from moh_deploy.validate.reference.samples import ALL_TOKENS


def example_inputs(
    model: LoadedModel,
    config: ExportConfig,
    *,
    npz: Path | GivenInputs | None = None,
    specs: Sequence[str] = (),
    dynamic: Sequence[str] = (),
) -> tuple[LoadedModel, tuple[ModelInput, ...]]:
    """Return the inputs to trace the model with, and the model with the call that takes them.

    Args:
        config: Describes the inputs, unless `npz` or `specs` do.
        npz: File whose members are the inputs, or values in memory, by name or position.
        specs: `--input` options.
        dynamic: `--dynamic` options.

    Raises:
        ConfigError: There are none, or they contradict each other, the model or the program.
    """
    if model.decoder is not None:
        assert model.module is not None
        refused = {
            "--input": specs or config.inputs,
            "--dynamic": dynamic,
            "--output-name": config.outputs,
            "--valid-tokens": config.valid_tokens,
            "inputs in memory": npz and not isinstance(npz, Path),
        }
        names = [name for name, value in refused.items() if value]
        if names:
            raise ConfigError(
                f"{', '.join(names)} and --task text-generation are both given: the task says what"
                " a language model's inputs and outputs are.",
                hint="Leave them out; --inputs FILE.npz may give real tokens, input_ids"
                " [batch, tokens].",
            )
        tokens = npz if isinstance(npz, Path) else None
        decoded = decoder_inputs(model.module, model.decoder, tokens)
        return replace(model, call=decoded.call), decoded.inputs
    described = bool(specs or config.inputs)
    # An ONNX file and a program know their own inputs.
    source = None if model.original is None else model.original.source
    is_given = npz is not None or described or (source is None and model.program is None)
    given = given_values(config, npz, specs) if is_given else {}
    own = () if model.program is None else inputs_from_program(model.program)
    if model.module is not None and source is None:
        bound = bind(model.module.forward, given)
        model, inputs = replace(model, call=bound.call, unknown=bound.unknown), bound.inputs
    elif is_given:
        inputs = flattened(given)
    elif source is not None:
        inputs = made_inputs(source)
    else:
        inputs = tuple(replace(item, dims={}) for item in own)
    inputs = with_dynamic_axes(config, inputs, npz, dynamic)
    if source is not None and is_given:
        inputs = fitted_inputs(source, inputs, described=described)
    if model.program is not None:
        inputs = with_values(own, inputs)
    example_sizes(inputs)  # refuses axes that disagree, and sizes that a trace would fix
    mask = config.valid_tokens
    if mask is not None and (mask != ALL_TOKENS or any(item.name == mask for item in inputs)):
        made = npz is None and (model.program is None or described)
        inputs = named_tokens(inputs, mask, made=made)
    to = model.input_dtypes
    return model, tuple(
        replace(item, value=item.value.to(to.get(item.value.dtype, item.value.dtype)))
        for item in inputs
    )


# Example inputs of text generation: tokens, the mask over cache and tokens, and the cache.
#
# Nobody writes them: how many there are, and of which sizes, the model said when it was run once.
# The cache holds what the model itself puts there for the tokens before.

BATCH, SEQ, PAST, TOTAL = "batch", "seq", "past", "total"
# Sizes from 2 on, all different, so that a trace takes none for another one.
_ROWS, _BEHIND, _NEW = 2, 5, 3


def decoder_inputs(module: torch.nn.Module, decoder: Decoder, npz: Path | None) -> BoundInputs:
    """Return example inputs of a model that `make_decoder` has given its forward.

    Args:
        npz: File with real tokens: `input_ids` [batch, tokens], and `attention_mask` where there is
            padding. Half of them are in the cache.

    Raises:
        ConfigError: The file holds something else, or too few tokens.
        ExportError: The model fails on the tokens that are to be in the cache.
    """
    if npz is not None:
        ids, mask = _given_tokens(npz, decoder)
        before = ids.shape[1] // 2
    else:
        generator = torch.Generator().manual_seed(0)
        # Token 0 is padding in many vocabularies, and its embedding may be zero.
        shape, before = (_ROWS, _BEHIND + _NEW), _BEHIND
        ids = torch.randint(1, decoder.vocab_size, shape, generator=generator)
        mask = torch.ones_like(ids)
        mask[0, :2] = 0
    empty = [
        {
            part: torch.zeros(len(ids), heads, 0, size, dtype=decoder.dtype)
            for part, size in (("key", key), ("value", value))
        }
        for heads, key, value in decoder.caches
    ]
    try:
        with torch.no_grad():
            found = module(ids[:, :before], mask[:, :before], tuple(empty))
    except Exception as error:  # the user's own code
        raise ExportError(
            f"the model itself fails on {before} tokens without a cache: {describe_error(error)}.",
            hint=None
            if npz is None
            else "Give fewer tokens in --inputs: half of them are put into the cache at once.",
        ) from error
    axes = {0: BATCH, 2: PAST}
    given: dict[str, object] = {
        "input_ids": ModelInput("input_ids", ids[:, before:].contiguous(), {0: BATCH, 1: SEQ}),
        "attention_mask": ModelInput("attention_mask", mask, {0: BATCH, 1: TOTAL}, says_valid=True),
    }
    for layer, pair in enumerate(found["present"]):
        for part, value in pair.items():
            name = f"past_key_values.{layer}.{part}"
            given[name] = ModelInput(name, value.contiguous(), axes)
    return bind(module.forward, given)


def decoder_outputs(decoder: Decoder) -> tuple[str, ...]:
    """Return the names of the outputs, in their order."""
    parts = (f"present.{i}.{part}" for i in range(len(decoder.caches)) for part in ("key", "value"))
    return ("logits", *parts)


def _given_tokens(npz: Path, decoder: Decoder) -> tuple[torch.Tensor, torch.Tensor]:
    members = {item.name: item.value for item in inputs_from_npz(npz)}
    ids = members.pop("input_ids", None)
    mask = members.pop("attention_mask", None)
    if ids is None or members or ids.ndim != 2 or ids.is_floating_point():
        raise ConfigError(
            f"{npz}: of text generation it holds input_ids [batch, tokens] of whole numbers, and"
            f" attention_mask of their shape; got {', '.join(members) or 'no input_ids'}."
        )
    mask = torch.ones_like(ids) if mask is None else mask
    if mask.shape != ids.shape or ids.shape[0] < 2 or ids.shape[1] < 4:
        raise ConfigError(
            f"{npz}: input_ids is {list(ids.shape)} and attention_mask {list(mask.shape)}; expected"
            " equal shapes, of 2 or more rows of 4 or more tokens.",
        )
    if int(ids.max()) >= decoder.vocab_size or int(ids.min()) < 0:
        raise ConfigError(
            f"{npz}: input_ids goes from {int(ids.min())} to {int(ids.max())}; the model has"
            f" {decoder.vocab_size} tokens."
        )
    return ids.long(), mask.long()
