"""The table of how much a runtime may differ from the reference, each rule with its reason."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from moh_deploy.config.dtypes import FEW_BITS
from moh_deploy.errors import ValidationError
from moh_deploy.package import Spread
from moh_deploy.runtime.base import Runner


@dataclass(frozen=True)
class Tolerance:
    """The errors that are allowed for one dtype."""

    # A tensor agrees if its largest absolute error is at most `relative * max(1, largest absolute
    # reference value)`.
    relative: float
    # A token whose margin is below this may choose other heads: rounding alone decides there.
    near_tie: float
    reason: str  # Why these figures
    # What `relative` is in layers and outputs behind a near-tie that went the other way, where the
    # reference gates cannot be fed to the model: another head moves a token by more than rounding
    # does. None for the same.
    relative_after_flip: float | None = None
    # Where the noise floor of the model was measured, the root mean square of an error may be this
    # many times that of the noise, and `relative` is only the most that a floor may excuse. 0 for
    # no floor.
    floor_factor: float = 0.0
    # The same for the largest error: of the one element, or token, that differs most. It is larger:
    # of a thousand images one may be noisier than all those that the floor was measured on.
    peak_factor: float = 0.0
    # What may differ whatever the floor is, as a share of the largest value: two steps of the
    # dtype.
    least: float = 0.0

    def after_flip(self) -> Tolerance:
        """Return the rule for what comes behind a flip."""
        behind = self.relative_after_flip
        return self if behind is None else replace(self, relative=behind)

    def limit(self, reference_max: float) -> float:
        """Return the largest absolute error allowed where the noise floor is not known."""
        return self.relative * max(1.0, reference_max)

    def spread_limit(
        self, size: Spread, floor: Spread | None, shape: Sequence[int], *, is_inner: bool = False
    ) -> Spread:
        """Return the root mean square and the largest error allowed.

        Args:
            floor: The same of what noise of the dtype's rounding makes; None if it is not known.
            shape: Of the values, [..., numbers of one token].
            is_inner: Of a value inside of the model, which is compared as a whole.
        """
        # Without a floor, outputs and gates are judged by their largest error alone.
        most = Spread(math.inf, self.limit(size.largest))
        if is_inner:  # one token may be ten times as far off as all of them together
            most = Spread(self.relative * size.rms, 10 * self.relative * size.rms)
        if floor is None or not self.floor_factor:
            return most
        # Tokens differ in how far rounding moves them: of one token the mean square is its own, and
        # of many it is that of all.
        tokens, numbers = max(1, math.prod(shape[:-1])), max(1, math.prod(shape))
        rms = floor.rms + max(0.0, floor.largest - floor.rms) / math.sqrt(tokens)
        # The mean square of a few numbers is itself a matter of luck.
        rms *= 1 + 1 / math.sqrt(numbers)
        # What is computed and rounded once more may move by a step.
        least = Spread(self.least / 2 * size.rms, self.least * size.largest)
        return Spread(
            # A floor narrows the rule and never widens it: `most` is what no floor excuses.
            min(most.rms, max(least.rms, self.floor_factor * rms)),
            min(most.largest, max(least.largest, self.peak_factor * floor.largest)),
        )

    def tie_bound(self, floor: Spread | None) -> float:
        """Return the margin below which a token may choose other heads: of two scores each may be
        off by what it may differ.
        """
        if floor is None or not self.floor_factor:
            return self.near_tie
        return min(self.near_tie, max(self.least, 2 * self.peak_factor * floor.largest))


_EXACT = Tolerance(0.0, 0.0, "integers and booleans have no rounding")
_FLOAT32 = Tolerance(
    1e-4,
    1e-5,
    "two and a half times the noise floor, which the export measured: the model with noise behind"
    " each operator. Small models are up to 2.4 times it away from the original, most of them 0.5"
    " times; the one element in thousands that differs most, up to six times. Without a measurement"
    " it, and at most: sums in another order were up to 8e-6 off over whole models; ten times that"
    " plus headroom for depth",
    floor_factor=2.5,
    peak_factor=16.0,
    least=2 * 2.0**-23,
)

BUILT_IN = "the built-in table"

# Not a dtype: float32 arithmetic except the operands of attention's matrix products.
BFLOAT16_PRODUCTS = "bfloat16 products"

TOLERANCES: Mapping[str, Tolerance] = {
    "float64": Tolerance(
        _FLOAT32.relative, _FLOAT32.near_tie, "as float32: the MoH ops compute in float32"
    ),
    "float32": _FLOAT32,
    "float16": Tolerance(
        2e-2,
        1e-2,
        "at most twice the noise floor: the floor is the largest of three draws of rounding"
        " noise, the run is another (0.07 to 1.6 of it over 20 models), and three miss the tail. A"
        " model whose floor is above 2e-2 of its values has no answer in float16. Margins: 10 bits"
        " of mantissa (1e-3 a step), some ten steps between a token and its scores",
        relative_after_flip=1e-1,
        floor_factor=2.0,
        peak_factor=4.0,
        least=2 * 2.0**-10,
    ),
    "bfloat16": Tolerance(
        1e-1,
        6e-2,
        "as float16, with 7 bits of mantissa (8e-3 a step)",
        relative_after_flip=3e-1,
        floor_factor=2.0,
        peak_factor=4.0,
        least=2 * 2.0**-7,
    ),
    BFLOAT16_PRODUCTS: Tolerance(
        1e-1,
        6e-2,
        "at most twice the noise floor, which adds to that of float32 what rounding queries, keys,"
        " weights and values to 8 bits moves: kernels do that and accumulate in float32. A value"
        " that no attention reaches keeps the rule of float32",
        relative_after_flip=3e-1,
        floor_factor=2.0,
        peak_factor=4.0,
        least=2 * 2.0**-23,
    ),
    "int8 products": Tolerance(
        1e-1,
        6e-2,
        "at most three quarters of the noise floor, in which every weight and operand moves by up"
        " to one step, 2.4 times as far as rounding moved it. Over five models of three layers"
        " outputs are 0.1 to 0.4 of the floor away from the original, by root mean square, and the"
        " one element that differs most up to 0.9. Margins: as bfloat16, whose steps are as large",
        relative_after_flip=3e-1,
        floor_factor=0.75,
        peak_factor=1.5,
        least=2 * 2.0**-8,
    ),
    "int4 products": Tolerance(
        0.5,
        0.3,
        "at most three quarters of the noise floor, as int8: every weight moves by up to one step"
        " of its block, 2.4 times as far as rounding moved it, and a step is 16 times as large."
        " Over five models of one to three layers outputs are 0.28 to 0.4 of the floor away, by"
        " root mean square, and the one element that differs most up to 0.33; attention up to 0.5."
        " That is up to 0.22 of the largest value: what is half of it off is no answer",
        relative_after_flip=1.0,
        floor_factor=0.75,
        peak_factor=1.5,
        least=2 * 2.0**-4,
    ),
    **dict.fromkeys(
        ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"], _EXACT
    ),
}


def tolerance_for(dtype: str, table: Mapping[str, Tolerance] = TOLERANCES) -> Tolerance:
    """Return the rule for a dtype.

    Raises:
        ValidationError: It has no tolerance, so nothing could be called equal.
    """
    if dtype not in table:
        raise ValidationError(
            f"there is no tolerance for dtype {dtype}, only for {', '.join(table)}."
        )
    return table[dtype]


def coarsest(*rules: Tolerance) -> Tolerance:
    """Return the rule that allows the largest error."""
    # Ranked by the loosest figure: what is allowed behind a flip, but where a policy says less.
    return max(
        rules, key=lambda rule: (max(rule.relative, rule.after_flip().relative), rule.near_tie)
    )


def output_rule(dtype: str, own: Tolerance, *of_model: Tolerance) -> Tolerance:
    """Return the rule for an output: the coarsest of its dtype's and of what it is made in.

    Logits that are cast to float32 still carry the rounding of the model. What is no float is not
    judged by what it is made of.
    """
    return coarsest(own, *of_model) if "float" in dtype else own


def rules_of(precision: str, runner: Runner) -> tuple[str, ...]:
    """Return the names of the rules for a model's precision and for what its kernels round to."""
    found = runner.describe()
    # A kernel library that computes in bfloat16 matters only if one of its kernels ran.
    on_kernels = "kernel" in found.layer_impl.values()
    rounded = on_kernels and found.kernels.compute_type == "bfloat16"
    rule = rule_name(precision)
    return (rule, BFLOAT16_PRODUCTS) if rounded else (rule,)


def rule_name(precision: str) -> str:
    """Return the name of the rule for a model's precision.

    In few bits that is no dtype: integers are exact, and what is made of products in int8 is not.
    """
    return f"{precision} products" if precision in FEW_BITS else precision
