from __future__ import annotations

import pytest

from moh_deploy.ops.op_names import base_domain, numbered_domain, with_base


@pytest.mark.parametrize(
    ("domain", "base"),
    [
        ("moh", "moh"),
        ("moh.2", "moh"),
        ("moh.10", "moh"),
        ("moh.dense", "moh.dense"),
        ("moh.dense.3", "moh.dense"),
    ],
)
def test_base_says_what_runs_a_node(domain: str, base: str):
    assert base_domain(domain) == base


@pytest.mark.parametrize(
    "domain", ["", "ai.onnx", "moh.1", "moh.0", "moh.sparse", "mohair", "com.moh", "moh.2.dense"]
)
def test_other_domains_are_not_ours(domain: str):
    assert base_domain(domain) is None


def test_first_body_needs_no_number():
    assert [numbered_domain("moh", number) for number in (1, 2, 16)] == ["moh", "moh.2", "moh.16"]


@pytest.mark.parametrize(("domain", "dense"), [("moh", "moh.dense"), ("moh.2", "moh.dense.2")])
def test_node_that_moves_keeps_its_body(domain: str, dense: str):
    assert with_base(domain, "moh.dense") == with_base(dense, "moh.dense") == dense
    assert with_base(dense, "moh") == with_base(domain, "moh") == domain
