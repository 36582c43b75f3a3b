"""Read the name of a mask of valid tokens: an input, or `not` and an input that is 1 for padding.

`attention_mask` is 1 for valid tokens, `not key_padding_mask` is 1 for padding, as PyTorch has it.
"""

from __future__ import annotations

_NOT = "not "


def mask_input(valid_tokens: str) -> str:
    """Return the name of the input, or member of a file, that holds the mask."""
    return valid_tokens.removeprefix(_NOT)


def marks_padding(valid_tokens: str) -> bool:
    """Tell whether the mask is 1 for padding, and not for valid tokens."""
    return valid_tokens.startswith(_NOT)


def mask_name(name: str, *, marks_padding: bool) -> str:
    """Return how a mask is named: see this module's first lines."""
    return f"{_NOT}{name}" if marks_padding else name
