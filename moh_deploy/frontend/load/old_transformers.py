"""Names that code for transformers 4.36 to 4.4x imports, and that transformers 5 has not any more.

See `own_code`: only the code of a model directory gets them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import modeling_rope_utils


def _plain_angles(
    config: Any, device: Any = None, *_: object, **__: object
) -> tuple[Tensor, float]:
    """Return the angles of a position, [head_dim / 2], and what cosines are multiplied with."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    size = int(size * getattr(config, "partial_rotary_factor", 1.0))
    exponents = torch.arange(0, size, 2, device=device).float() / size
    return 1.0 / config.rope_theta**exponents, 1.0


ROPE_INIT_FUNCTIONS = {"default": _plain_angles, **modeling_rope_utils.ROPE_INIT_FUNCTIONS}


def is_torch_fx_available() -> bool:
    """Let masks be traced like all else, and not stay one call for torch.fx."""
    return False


class ModelOutput(OrderedDict[str, Any]):
    """Base of dataclasses that are read by name, as an attribute or an item, or by place.

    Today's takes `past_key_values` for a name of another field, which its subclasses do not have.
    """

    def __post_init__(self) -> None:
        """Let the fields that are not None be the items."""
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if value is not None:
                super().__setitem__(field.name, value)

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def to_tuple(self) -> tuple[Any, ...]:
        """Return the items, in order."""
        return tuple(self.values())


class DynamicCache(transformers.DynamicCache):
    """A cache that is made of tuples, and becomes them again: ((key, value) of each layer)."""

    @classmethod
    def from_legacy_cache(cls, past_key_values: Any = None) -> DynamicCache:
        """Return a cache with the keys and values of tuples; an empty one for None."""
        cache = cls()
        for layer, (key, value, *_) in enumerate(past_key_values or ()):
            cache.update(key, value, layer)
        return cache

    def to_legacy_cache(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """Return what is in it as tuples."""
        return tuple((layer.keys, layer.values) for layer in self.layers)

    def get_usable_length(self, new_seq_length: int, layer_idx: int = 0) -> int:
        """Return how many tokens are kept when some are added: all of them."""
        # No int(): while a model is traced it is a symbol.
        length: int = self.get_seq_length(layer_idx)
        return length

    def get_max_length(self) -> None:
        """There is no most."""

    @property
    def seen_tokens(self) -> int:
        """Return the number of tokens that went through it."""
        length: int = self.get_seq_length()
        return length


def _prepare_4d_causal_attention_mask(
    attention_mask: Tensor | None,
    input_shape: Sequence[int],
    inputs_embeds: Tensor,
    past_key_values_length: int,
    sliding_window: int | None = None,
) -> Tensor:
    """Return what is added to scores, [batch, 1, seq, past + seq]: 0 where a token may look."""
    batch, seq = input_shape
    total = seq + past_key_values_length
    device = inputs_embeds.device
    key = torch.arange(total, device=device)
    query = key[past_key_values_length:, None]
    seen = key <= query  # [seq, total]
    if sliding_window is not None:
        seen = seen & (key > query - sliding_window)
    seen = seen[None, None].expand(batch, 1, seq, total)
    if attention_mask is not None and attention_mask.ndim == 4:
        return _added_to_scores(attention_mask != 0, inputs_embeds.dtype)
    if attention_mask is not None:
        seen = seen & (attention_mask != 0)[:, None, None, :]
    return _added_to_scores(seen, inputs_embeds.dtype)


# For scaled_dot_product_attention it was left out where nothing is hidden; the numbers are the
# same, and whether it can be left out would be a question about the mask's values.
_prepare_4d_causal_attention_mask_for_sdpa = _prepare_4d_causal_attention_mask


def _prepare_4d_attention_mask(
    mask: Tensor, dtype: torch.dtype, tgt_len: int | None = None
) -> Tensor:
    """Return what is added to scores, [batch, 1, tgt_len, keys], of a mask [batch, keys]."""
    batch, keys = mask.shape
    seen = (mask != 0)[:, None, None, :].expand(batch, 1, tgt_len or keys, keys)
    return _added_to_scores(seen, dtype)


def _added_to_scores(seen: Tensor, dtype: torch.dtype) -> Tensor:
    hidden = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=seen.device)
    return torch.where(seen, torch.zeros((), dtype=dtype, device=seen.device), hidden)


class AttentionMaskConverter:
    """Makes masks one by one, for old functions that stay uncalled."""

    def __init__(self, is_causal: bool, sliding_window: int | None = None) -> None:
        self.is_causal, self.sliding_window = is_causal, sliding_window

    @staticmethod
    def _make_causal_mask(
        input_ids_shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
        past_key_values_length: int = 0,
        sliding_window: int | None = None,
    ) -> Tensor:
        like = torch.empty(0, dtype=dtype, device=device)
        return _prepare_4d_causal_attention_mask(
            None, input_ids_shape, like, past_key_values_length, sliding_window
        )

    @staticmethod
    def _expand_mask(mask: Tensor, dtype: torch.dtype, tgt_len: int | None = None) -> Tensor:
        return _prepare_4d_attention_mask(mask, dtype, tgt_len)
