"""Read dynamic dimensions: a name, or a linear expression of one: `batch`, `past+1`, `2*seq-1`.

The form `multiplier * name + offset` is what `torch.export.Dim` can express.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from moh_deploy.errors import ConfigError

_NAME = r"(?P<name>[A-Za-z_]\w*)"
_NUMBER = r"\d{1,18}"  # fits into 64 bits
# The factor may stand on either side of the name; blanks are taken out before.
_EXPRESSION = re.compile(
    rf"(?:(?P<before>{_NUMBER})\*)?{_NAME}(?:\*(?P<after>{_NUMBER}))?(?:(?P<offset>[+-]{_NUMBER}))?",
    re.ASCII,
)


@dataclass(frozen=True)
class DimExpr:
    """A dynamic dimension: `multiplier * name + offset`."""

    name: str
    multiplier: int = 1
    offset: int = 0

    @classmethod
    def parse(cls, text: str, *, place: str) -> DimExpr:
        """Parse `batch`, `past+1`, `2*seq` or `2*seq-1`.

        Args:
            place: Where the text stands; it opens the error message.

        Raises:
            ConfigError: The text is of another form.
        """
        match = _EXPRESSION.fullmatch(re.sub(r"\s+", "", text))
        factors = [int(match[side]) for side in ("before", "after") if match[side]] if match else []
        if match is None or len(factors) > 1 or 0 in factors:
            raise ConfigError(
                f"{place}: '{text}' is not a dimension; expected a name, or whole number * name +"
                " whole number.",
                hint="Examples: batch, past+1, 2*seq, 2*seq-1. What follows from two names, as a"
                " mask over a cache and new tokens does, has a name of its own: total.",
            )
        multiplier = factors[0] if factors else 1
        return cls(match["name"], multiplier, int(match["offset"] or 0))

    @classmethod
    @lru_cache  # read anew for each run of a model
    def of_input(cls, text: str) -> DimExpr:
        """Read an axis of a model's input: what `parse` refuses is a dimension of its own.

        `past + seq` cannot be solved for either; it still has to agree with axes of the same text.
        """
        try:
            return cls.parse(text, place="an input")
        except ConfigError:
            return cls(text)

    def evaluate(self, sizes: Mapping[str, int]) -> int:
        """Return the size of this dimension where `sizes` gives the size of its name."""
        return self.multiplier * sizes[self.name] + self.offset

    def solve(self, size: int) -> int | None:
        """Return the size of the name that makes this dimension `size`; None if none does."""
        # 2*seq-1 = 7 is solved by seq = 4; 2*seq = 7 by nothing.
        base, rest = divmod(size - self.offset, self.multiplier)
        return base if rest == 0 and base >= 0 else None

    @property
    def is_plain(self) -> bool:
        """Tell whether this is the name alone."""
        return self.multiplier == 1 and self.offset == 0

    def __str__(self) -> str:
        factor = "" if self.multiplier == 1 else f"{self.multiplier}*"
        return f"{factor}{self.name}" + (f"{self.offset:+d}" if self.offset else "")


def size_at(dim: int | str | None, sizes: Mapping[str, int]) -> int | None:
    """Return the size of an axis; None where it is of no one dimension that is known."""
    if dim is None or isinstance(dim, int):
        return dim
    try:
        return DimExpr.parse(dim, place="an axis").evaluate(sizes)
    except (ConfigError, KeyError):
        return None


def limits_text(limits: tuple[int, int | None]) -> str:
    """Return `1 to 64` or `5 to any size` for the smallest and largest size of a dimension."""
    smallest, largest = limits
    return f"{smallest} to {'any size' if largest is None else largest}"


@dataclass(frozen=True)
class DynamicAxis:
    """An axis that is dynamic, with its size in the example."""

    place: str  # where the axis is, for messages: `axis 0 of input 'x'`
    expr: DimExpr
    size: int


def solve_sizes(axes: Iterable[DynamicAxis]) -> dict[str, int]:
    """Return the example size of every dimension name.

    Raises:
        ConfigError: Two axes disagree, a size is impossible for its expression, or it is below 2.
    """
    found: dict[str, tuple[int, DynamicAxis]] = {}
    for axis in axes:
        require_traceable(axis)
        size = axis.expr.solve(axis.size)
        if size is None:
            raise ConfigError(
                f"{axis.place} has size {axis.size}, which '{axis.expr}' cannot be for any whole"
                f" number '{axis.expr.name}' >= 0."
            )
        # Axes of one name have to mean the same size, whatever their expressions.
        known, first = found.setdefault(axis.expr.name, (size, axis))
        if known != size:
            raise ConfigError(
                f"dimension '{axis.expr.name}' has two sizes: {_explain(first, known)},"
                f" {_explain(axis, size)}.",
                hint="Give the two axes different names, or an example in which they agree.",
            )
    return {name: size for name, (size, _) in found.items()}


def require_traceable(axis: DynamicAxis) -> None:
    """Refuse an example size that tracing would take for a constant.

    Raises:
        ConfigError: The size is 0 or 1.
    """
    if axis.size < 2:
        raise ConfigError(
            f"{axis.place} is dynamic ('{axis.expr}') but its example size is {axis.size};"
            " PyTorch treats sizes 0 and 1 as constants when it traces.",
            hint="Give an example of size >= 2 on this axis; the exported model takes 1 too.",
        )


def _explain(axis: DynamicAxis, size: int) -> str:
    derived = "" if axis.expr.is_plain else f" ({axis.expr} = {axis.size})"
    return f"{size} from {axis.place}{derived}"
