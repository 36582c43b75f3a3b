from __future__ import annotations

from collections import OrderedDict, defaultdict, namedtuple
from typing import Any

import pytest
from torch.utils import _pytree as pytree

from moh_deploy.frontend.fx.containers import leaf_keys

Pair = namedtuple("Pair", ["key", "value"])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, [()]),
        ([1, (2, 3)], [("0",), ("1", "0"), ("1", "1")]),
        ({"a": 1, 2: [3]}, [("a",), ("2", "0")]),
        (OrderedDict(b=1, a=2), [("b",), ("a",)]),
        (defaultdict(int, b=1, a=2), [("b",), ("a",)]),
        ([Pair(1, {"x": 2})], [("0", "key"), ("0", "value", "x")]),
        ({}, []),
    ],
)
def test_keys_lead_to_each_leaf(value: Any, expected: list[tuple[str, ...]]):
    assert leaf_keys(pytree.tree_structure(value)) == expected
