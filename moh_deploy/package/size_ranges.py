"""Choices by size: parse and write ranges, and find the choice that some sizes mean."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from moh_deploy.errors import ConfigError
from moh_deploy.package.layer_info import Choice, LayerInfo, SizeRange
from moh_deploy.system.suggest import did_you_mean

_WHERE = re.compile(r"(?P<path>[^\[\]]+)\[(?P<size>[^\[\]<>=]+)<=(?P<at_most>\d{1,18})\]")


def bound_text(size_range: SizeRange) -> str:
    """Return `batch*seq<=64`."""
    return f"{size_range.size}<={size_range.at_most}"


def is_in(size_range: SizeRange, sizes: Mapping[str, int]) -> bool:
    """Tell whether sizes are in a range."""
    return measure(size_range.size, sizes) <= size_range.at_most


def measure(size: str, sizes: Mapping[str, int]) -> int:
    """Compute a product of dimensions, such as `batch*seq`, at some sizes."""
    # A single name is a product of one.
    return math.prod(sizes[name] for name in size.split("*"))


def choice_at(layer: LayerInfo, sizes: Mapping[str, int]) -> Choice | None:
    """Return the choice that a layer has at some sizes, as `LayerInfo.choice` has it."""
    return next((range_.choice for range_ in layer.ranges if is_in(range_, sizes)), layer.choice)


def at_sizes(layers: Sequence[LayerInfo], sizes: Mapping[str, int]) -> tuple[LayerInfo, ...]:
    """Return the layers with one choice each: the one that they have at these sizes.

    Args:
        layers: The layers.
        sizes: Size of each dynamic dimension.
    """
    return tuple(replace(layer, choice=choice_at(layer, sizes), ranges=()) for layer in layers)


def split_where(text: str, dims: Sequence[str]) -> tuple[str, tuple[str, int] | None]:
    """Split `blocks.0.attn[batch*seq<=64]` into path, and size and bound; None for all sizes.

    Args:
        text: The text.
        dims: Names of the package's dynamic dimensions.

    Raises:
        ConfigError: It is of another form, or no dimension is called so.
    """
    # Module paths have no brackets, so one begins a range.
    if "[" not in text:
        return text, None
    match = _WHERE.fullmatch(text.replace(" ", ""))
    if match is None:
        raise ConfigError(
            f"'{text}' is no layer with a range of sizes, expected LAYER[SIZE<=N], such as"
            " 'all[seq<=64]' or 'all[batch*seq<=64]'."
        )
    for name in match["size"].split("*"):
        if name not in dims:
            raise ConfigError(
                f"'{text}': the package has no dynamic dimension '{name}', only"
                f" {', '.join(dims) or 'none'}.",
                hint=did_you_mean(name, dims) or None,
            )
    return match["path"], (match["size"], int(match["at_most"]))
