from typing import get_args

import ml_dtypes
import pytest

from moh_deploy.config.dtypes import PRECISIONS, RUNTIMES, LowerPrecision, Runtime, dtype_named
from moh_deploy.errors import ConfigError


def test_dtype_that_is_not_allowed_is_refused_however_it_is_spelled():
    for text in ("fp32", "float32", "half"):
        with pytest.raises(ConfigError, match=rf"to is '{text}', expected float16 or bfloat16"):
            dtype_named(text, ("float16", "bfloat16"), option="to")


def test_every_runtime_has_a_title():
    assert tuple(RUNTIMES) == get_args(Runtime)


def test_every_precision_that_a_package_may_have_is_described():
    assert set(PRECISIONS) == {*get_args(LowerPrecision), "float32", "float64"}
    sizes = [precision.weight_bytes for precision in PRECISIONS.values()]
    assert sizes == sorted(sizes)  # `model_facts` takes the first of those that a graph shows


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_step_of_a_dtype_is_that_between_1_and_the_next_number(name: str):
    assert PRECISIONS[name].step == ml_dtypes.finfo(name).eps
