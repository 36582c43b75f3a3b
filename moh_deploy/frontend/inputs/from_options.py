"""Make the example inputs that the user's options and configuration describe."""

from dataclasses import replace
from pathlib import Path

import torch

from moh_deploy.config.export_config import ExportConfig
from moh_deploy.config.options import ExportOptions
from moh_deploy.errors import ConfigError, ExportError
from moh_deploy.frontend.inputs.arguments import BoundInputs, bind
from moh_deploy.frontend.inputs.examples import build_call
from moh_deploy.frontend.inputs.npz_inputs import inputs_from_npz
from moh_deploy.frontend.inputs.onnx_inputs import build_onnx_inputs
from moh_deploy.frontend.inputs.padding import named_tokens
from moh_deploy.frontend.inputs.program_inputs import build_program_inputs
from moh_deploy.frontend.load.decoder import Decoder
from moh_deploy.frontend.load.model import LoadedModel, ModelInput
from moh_deploy.system.user_code import describe_error
from moh_deploy.validate.reference.samples import ALL_TOKENS


def example_inputs(
    options: ExportOptions, config: ExportConfig, model: LoadedModel
) -> tuple[LoadedModel, tuple[ModelInput, ...]]:
    """Return the inputs to trace the model with, and the model with the call that takes them.

    Raises:
        ConfigError: There are none, or they contradict each other, the model or the program.
    """
    if model.decoder is not None:
        assert model.module is not None
        given = {
            "--input": options.input_specs or config.inputs,
            "--dynamic": options.dynamic,
            "--output-name": options.output_names or config.outputs,
            "--valid-tokens": asked_mask(options, config),
            "inputs in memory": options.inputs and not isinstance(options.inputs, Path),
        }
        names = [name for name, value in given.items() if value]
        if names:
            raise ConfigError(
                f"{', '.join(names)} and --task text-generation are both given: the task says what"
                " a language model's inputs and outputs are.",
                hint="Leave them out; --inputs FILE.npz may give real tokens, input_ids"
                " [batch, tokens].",
            )
        npz = options.inputs if isinstance(options.inputs, Path) else None
        decoded = decoder_inputs(model.module, model.decoder, npz)
        return replace(model, call=decoded.call), decoded.inputs
    if model.original is not None:
        inputs = build_onnx_inputs(
            model.original.source,
            config,
            npz=options.inputs,
            specs=options.input_specs,
            dynamic=options.dynamic,
        )
    elif model.program is not None:
        inputs = build_program_inputs(
            model.program,
            config,
            npz=options.inputs,
            specs=options.input_specs,
            dynamic=options.dynamic,
        )
    else:
        assert model.module is not None
        bound = build_call(
            model.module.forward,
            config,
            npz=options.inputs,
            specs=options.input_specs,
            dynamic=options.dynamic,
        )
        model, inputs = replace(model, call=bound.call, unknown=bound.unknown), bound.inputs
    mask = asked_mask(options, config)
    if mask is None or (mask == ALL_TOKENS and all(item.name != mask for item in inputs)):
        return model, inputs
    described = model.program is None or bool(options.input_specs or config.inputs)
    return model, named_tokens(inputs, mask, made=options.inputs is None and described)


def asked_mask(options: ExportOptions, config: ExportConfig) -> str | None:
    """Return what the user says of valid tokens: the name of an input, or `all`."""
    return options.valid_tokens or config.valid_tokens


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
