"""Read from a model directory's config what generating text has to know, and check it."""

from __future__ import annotations

from collections.abc import Mapping

from moh_deploy.errors import CheckpointError
from moh_deploy.frontend.load.decoder import Decoder
from moh_deploy.frontend.load.directory.files import ModelDirectory
from moh_deploy.package import TextGeneration
from moh_deploy.system.bounded_json import read_json

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
    """Return what generating text has to know of a model; None where it is none for that.

    Raises:
        CheckpointError: `generation_config.json` cannot be read.
    """
    if decoder is None:
        return None
    if directory is None:
        return TextGeneration(decoder.vocab_size)
    config = directory.config
    # What generates is told more by a file of its own, if there is one.
    said = {**config, **_generation_config(directory)}
    ends = said.get("eos_token_id")
    # -1 and numbers beyond the vocabulary stand for "there is none" in some configs.
    tokens = range(decoder.vocab_size)
    return TextGeneration(
        vocab_size=decoder.vocab_size,
        context_length=_context_length(config),
        eos_token_ids=tuple(
            end
            for end in map(_number, ends if isinstance(ends, list) else [ends])
            if end is not None and end in tokens
        ),
        bos_token_id=_token(said.get("bos_token_id"), tokens),
        pad_token_id=_token(said.get("pad_token_id"), tokens),
        model_type=directory.text("model_type"),
    )


def _generation_config(directory: ModelDirectory) -> Mapping[str, object]:
    try:
        found = read_json(directory.root / "generation_config.json", error=CheckpointError)
    except FileNotFoundError:
        return {}
    return {k: v for k, v in found.items() if v is not None} if isinstance(found, dict) else {}


def _context_length(config: Mapping[str, object]) -> int | None:
    said = (_number(config.get(key)) for key in _CONTEXT_LENGTH)
    return next((number for number in said if number is not None and number > 0), None)


def _token(value: object, tokens: range) -> int | None:
    found = _number(value)
    return found if found is not None and found in tokens else None


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
