from dataclasses import replace

import pytest

from moh_deploy.config.dtypes import PRECISIONS
from moh_deploy.errors import ValidationError
from moh_deploy.validate.compare.tolerances import (
    BFLOAT16_PRODUCTS,
    TOLERANCES,
    coarsest,
    rule_name,
    tolerance_for,
)


def test_limits_grow_with_the_reference_but_not_below_one():
    rule = tolerance_for("float32")
    assert rule.limit(0.0) == rule.limit(1.0) == 1e-4
    assert rule.limit(50.0) == pytest.approx(5e-3)
    assert rule.near_tie == 1e-5
    assert tolerance_for("int64").limit(1e9) == 0.0
    assert all(rule.reason for rule in TOLERANCES.values())


def test_coarsest_rule_is_the_one_that_allows_most():
    fine, coarse = tolerance_for("float32"), tolerance_for("float16")
    assert coarsest(fine, coarse) is coarsest(coarse, fine) is coarse


def test_only_short_mantissas_allow_more_behind_a_flip():
    loose = {name for name, rule in TOLERANCES.items() if rule.after_flip() != rule}
    assert loose == {BFLOAT16_PRODUCTS, "float16", "bfloat16", "int8 products", "int4 products"}
    single, products = tolerance_for("float32"), tolerance_for(BFLOAT16_PRODUCTS)
    assert coarsest(single, products) is products
    # Nothing allowed behind a flip is a rule of its own.
    assert replace(single, relative_after_flip=0.0).after_flip().relative == 0.0


def test_every_precision_has_a_rule():
    assert {rule_name(name) for name in PRECISIONS} <= set(TOLERANCES)
    assert rule_name("int8") == "int8 products"  # of the dtype int8 nothing may differ


def test_dtype_without_rule_is_refused():
    with pytest.raises(ValidationError, match="no tolerance for dtype complex64, only for float"):
        tolerance_for("complex64")
