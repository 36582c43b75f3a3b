import pytest

from moh_deploy import ops
from moh_deploy.errors import ExportError
from moh_deploy.ops import MOH_ATTENTION, MOH_ROUTER, OPS, is_moh_op


def test_every_op_is_found_by_its_name():
    specs = [spec for name, spec in vars(ops).items() if name.startswith("MOH_")]
    assert dict(OPS) == {spec.name: spec for spec in specs}
    assert len(OPS) == len(specs) == 9


def test_complete_fills_in_defaults():
    completed = MOH_ROUTER.complete({"top_k": 2})
    assert completed == {"top_k": 2, "num_shared_heads": 0, "gate_mode": "weighted"}


def test_complete_turns_a_whole_number_into_a_float():
    given = {"q_num_heads": 2, "kv_num_heads": 2, "scale": 1}
    assert isinstance(MOH_ATTENTION.complete(given)["scale"], float)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "needs the attribute 'top_k'"),
        ({"top_k": 2.0}, "'top_k' has type float; expected int"),
        ({"top_k": True}, "'top_k' has type bool; expected int"),
        ({"top_k": 2, "gate_mode": 1}, "'gate_mode' has type int; expected string"),
        ({"top_k": -1}, "MoHRouter: top_k is -1; expected 0 or more."),
        ({"top_k": 2, "gate_mode": "soft"}, "gate_mode is 'soft'; expected weighted or mask."),
        ({"top_k": 2, "num_shared": 1}, "no attribute 'num_shared'.*\n.*'num_shared_heads'"),
    ],
)
def test_complete_refuses_what_the_op_does_not_take(given, message: str):
    with pytest.raises(ExportError, match=message):
        MOH_ROUTER.complete(given)


@pytest.mark.parametrize(
    ("domain", "name", "ours"),
    [
        ("moh", "MoHAttention", True),
        ("moh.dense.2", "MoHRouter", True),
        ("", "MoHAttention", False),
        ("moh", "Attention", False),
    ],
)
def test_ours_are_told_by_domain_and_name(domain: str, name: str, ours: bool):
    assert is_moh_op(domain, name) == ours
