"""Let a language model take its cache as tensors, and return it: what text generation needs.

Whatever a model calls its cache, from outside it is a key and a value for each layer,
[batch, kv_heads, past, head_dim], and a mask [batch, past + seq] says which tokens are padding.
Which form the model's own cache has shows when it is run once.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from moh_deploy.errors import CheckpointError, ConfigError, ExportError
from moh_deploy.frontend.load.model_directory import ModelDirectory
from moh_deploy.frontend.quiet import no_advice
from moh_deploy.package import TextGeneration
from moh_deploy.system.bounded_json import read_json
from moh_deploy.system.user_code import describe_error

# Key and value of a layer, [batch, kv_heads, tokens, head_dim].
KeyValue: TypeAlias = tuple[Tensor, Tensor]

# What forwards call their cache, and outputs the one that they return.
_CACHES = ("past_key_values", "cache")
_TRIED = 4  # tokens of the trial: at once, and as two and two behind a cache
# By how much of its root mean square a logit may move where other sizes round otherwise.
_LARGEST_SHARE = {torch.float32: 1e-3, torch.float64: 1e-3}
_LARGEST_SHARE_HALF = 0.1


@dataclass(frozen=True)
class Decoder:
    """The caches and logits of a language model, found by a trial run."""

    # Of each layer: heads of keys and values, and the sizes of a key and of a value.
    caches: tuple[tuple[int, int, int], ...]
    dtype: torch.dtype  # of the caches
    vocab_size: int  # how many logits a token has


def make_decoder(module: nn.Module) -> Decoder:
    """Give a module the forward `(input_ids, attention_mask, past_key_values)` of text generation.

    `past_key_values` is a tuple of dicts with `key` and `value`; it returns `logits` and `present`,
    a list of such. Positions are counted from the mask, so that padding on the left moves none.

    Raises:
        ConfigError: The module's forward is not that of a language model with a cache.
        ExportError: The module fails, or computes something else behind a cache than at once.
    """
    cls = type(module)
    parameters = inspect.signature(cls.forward).parameters
    if "input_ids" not in parameters or not any(name in parameters for name in _CACHES):
        raise ConfigError(
            f"the forward of {cls.__name__} takes {', '.join([*parameters][1:])}; expected that of"
            " a language model: forward(input_ids, attention_mask, past_key_values, use_cache).",
            hint="Without --task text-generation a model is exported with the inputs that you"
            " name: docs/huggingface.md.",
        )
    ids = torch.arange(1, 2 * _TRIED + 1).view(2, _TRIED)
    try:
        with torch.no_grad(), no_advice():
            logits, cache = _run(module, cls, ids, torch.ones_like(ids), None)
    except Exception as error:  # the user's own code
        raise ExportError(
            f"the model itself fails on {_TRIED} tokens without a cache: {describe_error(error)}.",
            hint="Expected of a language model: logits and past_key_values, in an object, a dict or"
            " a tuple, where use_cache is True.",
        ) from error
    make_cache = _form(cache)
    layers = _layers(cache)
    _check_behind_cache(module, cls, ids, logits, make_cache)

    def forward(
        self: nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        past_key_values: Sequence[Mapping[str, Tensor]],
    ) -> dict[str, object]:
        past = make_cache([(layer["key"], layer["value"]) for layer in past_key_values])
        found, present = _run(self, cls, input_ids, attention_mask, past)
        pairs = [{"key": key, "value": value} for key, value in _layers(present)]
        return {"logits": found, "present": pairs}

    # The module stays the root of its layers, whose paths name them.
    members = {"forward": forward, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
    module.__class__ = type(cls.__name__, (cls,), members)
    return Decoder(
        caches=tuple((key.shape[1], key.shape[3], value.shape[3]) for key, value in layers),
        dtype=layers[0][0].dtype,
        vocab_size=logits.shape[-1],
    )


def _run(
    module: nn.Module, cls: type[nn.Module], input_ids: Tensor, attention_mask: Tensor, past: object
) -> tuple[Tensor, object]:
    """Run a language model; return its logits, and its cache as it has it."""
    # Padding counts for none: the first token of each row is at 0, however far to the right.
    positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
    arguments = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "position_ids": positions,
        **dict.fromkeys(_CACHES, past),
        "use_cache": True,
        "return_dict": True,
    }
    takes = inspect.signature(cls.forward).parameters
    found: Any = cls.forward(module, **{k: v for k, v in arguments.items() if k in takes})
    if isinstance(found, (tuple, list)):
        return found[0], found[1]
    named = found if isinstance(found, Mapping) else vars(found)
    return named["logits"], named[next(name for name in _CACHES if name in named)]


def _layers(cache: Any) -> list[KeyValue]:
    """Return the keys and values in a cache: of transformers, of before, or of tuples."""
    if hasattr(cache, "layers"):
        return [(layer.keys, layer.values) for layer in cache.layers]
    if hasattr(cache, "key_cache"):
        return list(zip(cache.key_cache, cache.value_cache, strict=True))
    return [(key, value) for key, value, *_ in cache]


def _form(cache: Any) -> Callable[[Sequence[KeyValue]], object]:
    """Return what makes a cache, such as the model returned, of keys and values.

    Raises:
        ExportError: It is of a form that is not known, is empty, or does not grow with the tokens.
    """
    cls, is_plain = type(cache), isinstance(cache, (tuple, list))
    try:
        layers = _layers(cache)
        empty = [index for index, (key, _) in enumerate(layers) if key is None or not key.numel()]
        # An object of transformers can be left empty by its own model.
        if empty or not (layers or is_plain):
            which = f"of layer {empty[0]}" if len(empty) < len(layers) else "of every layer"
            raise ExportError(
                f"the model returns a {cls.__name__} that is empty after {_TRIED} tokens: no keys"
                f" {which} are in it.",
                hint="Each attention has to call its `update`. One that takes the cache by another"
                " name than it is passed by, and the rest as **kwargs, never sees it: transformers"
                " 5.24 passes `cache`, earlier ones `past_key_values`.",
            )
        known = bool(layers) and all(tensor.ndim == 4 for pair in layers for tensor in pair)
    except (TypeError, ValueError, AttributeError):
        known = False
    if not known:
        raise ExportError(
            f"the model returns a {cls.__name__} for past_key_values; expected a key and a value,"
            " [batch, heads, tokens, head_dim], for each layer.",
            hint="Return tuples (key, value), or a DynamicCache of transformers.",
        )
    lengths = {tensor.shape[2] for pair in layers for tensor in pair}
    if lengths != {_TRIED}:
        raise ExportError(
            f"the model's cache holds {sorted(lengths)} tokens after {_TRIED}; expected one that"
            " grows with them.",
            hint="A cache of a fixed length is nothing that this task can export.",
        )

    def filled(pairs: Sequence[KeyValue]) -> object:
        made = cls()
        for layer, (key, value) in enumerate(pairs):
            made.update(key, value, layer)
        return made

    return tuple if is_plain else filled


def _check_behind_cache(
    module: nn.Module,
    cls: type[nn.Module],
    ids: Tensor,
    at_once: Tensor,
    make_cache: Callable[[Sequence[KeyValue]], object],
) -> None:
    """Check that two tokens behind two others give what four give at once.

    Raises:
        ExportError: They do not, or the model does not take its own cache.
    """
    half, mask = _TRIED // 2, torch.ones_like(ids)
    try:
        with torch.no_grad(), no_advice():
            first, cache = _run(module, cls, ids[:, :half], mask[:, :half], make_cache([]))
            logits, _ = _run(module, cls, ids[:, half:], mask, make_cache(_layers(cache)))
    except Exception as error:  # the user's own code
        raise ExportError(
            f"the model does not take the cache that it returns: {describe_error(error)}."
        ) from error
    most = _LARGEST_SHARE.get(at_once.dtype, _LARGEST_SHARE_HALF)
    if (share := _share_off(first, at_once[:, :half])) > most:
        raise ExportError(
            f"a token's logits depend on tokens behind it: those of the first {half} are off by"
            f" {share:.3g} of their size where {_TRIED} are given, allowed is {most:g}.",
            hint="A language model's attention is causal. For sdpa transformers passes no causal"
            " mask; an attention with a softmax of its own needs one: set"
            " `config._attn_implementation = 'eager'` where the model is built.",
        )
    if (share := _share_off(logits, at_once[:, half:])) > most:
        raise ExportError(
            f"behind a cache the model computes something else than at once: logits are off by"
            f" {share:.3g} of their size, allowed is {most:g}.",
            hint="Do positions and the mask count the tokens in the cache?",
        )


def _share_off(logits: Tensor, expected: Tensor) -> float:
    """Return how far logits are off, as a share of their size; infinite if that is NaN."""
    expected = expected.double()
    squares = (logits.double() - expected).pow(2).mean() / expected.pow(2).mean()
    share = float(squares) ** 0.5
    return math.inf if math.isnan(share) else share


# Read from a model directory's config what generating text has to know, and check it.

_CONTEXT_LENGTH = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")


def check_config(directory: ModelDirectory, decoder: Decoder) -> None:
    """Check that a model has the sizes that its config says.

    Raises:
        CheckpointError: Naming the first that it has not.
    """
    heads, key_size, _ = decoder.caches[0]
    for key, found in (
        ("num_hidden_layers", len(decoder.caches)),
        ("num_key_value_heads", heads),
        ("head_dim", key_size),
        ("vocab_size", decoder.vocab_size),
    ):
        said = _number(directory.config.get(key))
        if said is not None and said != found:
            raise CheckpointError(
                f"{directory.config_path}: {key} is {said}, but the model that was built with it"
                f" has {found}.",
                hint="Are config, code and weights of one model?",
            )


def text_generation(
    decoder: Decoder | None, directory: ModelDirectory | None
) -> TextGeneration | None:
    """Return the settings of a model that generates text, or None for another model.

    Raises:
        CheckpointError: `generation_config.json` cannot be read.
    """
    if decoder is None:
        return None
    if directory is None:
        return TextGeneration(decoder.vocab_size)
    # What generates is told more by a file of its own, if there is one.
    try:
        own = read_json(directory.root / "generation_config.json", error=CheckpointError)
    except FileNotFoundError:
        own = None
    own = own if isinstance(own, dict) else {}
    said = {**directory.config, **{k: v for k, v in own.items() if v is not None}}
    lengths = (_number(directory.config.get(key)) for key in _CONTEXT_LENGTH)

    def tokens(key: str) -> list[int]:
        # -1 and numbers beyond the vocabulary stand for "no token" in some configs.
        given = said.get(key)
        found = map(_number, given if isinstance(given, list) else [given])
        return [token for token in found if token is not None and 0 <= token < decoder.vocab_size]

    def token(key: str) -> int | None:
        return None if isinstance(said.get(key), list) else next(iter(tokens(key)), None)

    return TextGeneration(
        vocab_size=decoder.vocab_size,
        context_length=next((number for number in lengths if number and number > 0), None),
        eos_token_ids=tuple(tokens("eos_token_id")),
        bos_token_id=token("bos_token_id"),
        pad_token_id=token("pad_token_id"),
        model_type=directory.text("model_type"),
    )


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
