"""The cases of MoHMatMulNBits, whose X holds numbers that rounding to 8 bits does not change."""

from math import prod

import numpy as np

from moh_deploy.ops.cases import Case
from moh_deploy.ops.nbits_product import BLOCK
from moh_deploy.ops.spec import Arrays
from tests.ops.cases.nbits_projection import STEP, in_8_bits

OP = "MoHMatMulNBits"


def product_case(
    name: str,
    why: str,
    x: tuple[int, ...],
    columns: int,
    *,
    bits: int = 4,
    value: float | None = None,
) -> Case:
    """Return a case with an X of that shape; its first number is `value`, where one is given."""
    rows = x[-1]

    def build(rng: np.random.Generator) -> Arrays:
        tokens = in_8_bits(rng.standard_normal((1, prod(x[:-1]), rows))).reshape(x)
        if value is not None:
            tokens.flat[0] = value
        blocks = -(-rows // BLOCK)
        # Behind the last row, too: what stands there is not to be read.
        digits = rng.integers(0, 256, (columns, blocks, BLOCK * bits // 8), dtype=np.uint8)
        scales = rng.uniform(0.5, 1.5, (columns, blocks)) * rows**-0.5 / 2**bits
        return (tokens, digits, scales)

    attributes = {"in_features": rows, "out_features": columns, "bits": bits}
    return Case(name, OP, why, attributes, build)


def _extremes(rng: np.random.Generator) -> Arrays:
    """Digits of 0 and 255 times numbers of -127 and 127 steps."""
    x = rng.choice([-127 * STEP, 127 * STEP], (1, 3, 64))
    digits = rng.choice([0, 255], (9, 2, 32)).astype(np.uint8)
    return (x, digits, np.full((9, 2), 2.0**-11))


CASES = (
    product_case("plain", "Two digits in a byte, the last block not full.", (2, 5, 40), 12),
    product_case("eight_bits", "A digit in a byte.", (2, 5, 40), 12, bits=8),
    product_case(
        "one_token", "Less rows than a tile has, columns of a part of a vector.", (1, 96), 37
    ),
    product_case("many_tokens", "Several tiles of rows, and a rest.", (3, 23, 64), 33),
    product_case("rank_4", "All dimensions but the last are tokens.", (2, 3, 2, 64), 16),
    product_case("long_columns", "More blocks than are read at a time.", (1, 3, 2100), 20),
    product_case("long_columns_of_8", "The same.", (1, 3, 1100), 20, bits=8),
    product_case("no_tokens", "Nothing to do.", (2, 0, 40), 12),
    product_case("nan_token", "NaN stays in its row.", (1, 3, 40), 12, value=np.nan),
    Case(
        "extremes",
        OP,
        "Pairs of products that 16 bits do not hold.",
        {"in_features": 64, "out_features": 9, "bits": 8},
        _extremes,
    ),
)
