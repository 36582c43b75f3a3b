from __future__ import annotations

import pytest

from moh_deploy.errors import ExportError
from moh_deploy.ops import MOH_ROUTER, TensorType
from moh_deploy.ops.spec import AttributeValue, OpDim


def _float(*shape: OpDim) -> TensorType:
    return TensorType("float32", shape)


ROUTED, SHARED, STAGE = (
    _float("batch", "seq", 7),
    _float("batch", "seq", 3),
    _float("batch", "seq", 2),
)


def _infer(*inputs: TensorType | None, **attributes: AttributeValue) -> TensorType:
    return MOH_ROUTER.shape_rule(inputs, MOH_ROUTER.complete({"top_k": 2} | attributes))[0]


def test_gates_cover_shared_and_routed_heads():
    assert _infer(ROUTED, SHARED, STAGE, num_shared_heads=3) == _float("batch", "seq", 10)


def test_routed_heads_alone_are_enough():
    assert _infer(ROUTED) == ROUTED


def test_shared_heads_alone_are_enough():
    assert _infer(None, SHARED, top_k=0, num_shared_heads=3) == SHARED
    assert _infer(None, None, STAGE, top_k=0, num_shared_heads=5) == _float("batch", "seq", 5)


def test_unknown_number_of_routed_heads_stays_unknown():
    assert _infer(_float(None, 4, None), SHARED, num_shared_heads=3) == _float("batch", 4, None)


def test_gates_have_the_dtype_of_the_logits():
    assert _infer(TensorType("float16", (2, 3, 7))).dtype == "float16"


@pytest.mark.parametrize(
    ("inputs", "attributes", "message"),
    [
        ((), {"top_k": 0, "num_shared_heads": 1}, "no input is given"),
        ((ROUTED,), {"top_k": 8}, "top_k is 8; expected at most the 7 heads"),
        ((ROUTED,), {"top_k": 0}, "top_k is 0, but routed_logits is given"),
        ((ROUTED,), {"num_shared_heads": -1}, "num_shared_heads is -1; expected 0 or more"),
        ((ROUTED,), {"gate_mode": "soft"}, "gate_mode is 'soft'; expected weighted or mask"),
        ((None, SHARED), {"num_shared_heads": 3}, "top_k is 2, but routed_logits is absent"),
        ((None, None, STAGE), {"top_k": 0}, "neither routed nor shared heads"),
        ((ROUTED, SHARED), {}, "shared_logits is given, but num_shared_heads is 0"),
        ((ROUTED, SHARED), {"num_shared_heads": 4}, "last size of shared_logits is 3; expected 4"),
        ((ROUTED, None, SHARED), {}, "last size of stage_logits is 3; expected 2"),
        (
            (ROUTED, SHARED),
            {"num_shared_heads": 3, "gate_mode": "mask"},
            "gate_mode is 'mask', but shared_logits is given",
        ),
        (
            (ROUTED, None, STAGE),
            {"gate_mode": "mask"},
            "gate_mode is 'mask', but stage_logits is given",
        ),
        ((_float(5, 7),), {}, r"routed_logits has rank 2, shape \[5, 7\]; expected rank 3"),
        ((TensorType("int64", (1, 5, 7)),), {}, "routed_logits has dtype int64"),
        (
            (ROUTED, None, TensorType("float16", (1, 5, 2))),
            {},
            "stage_logits has dtype float16; expected float32",
        ),
        (
            (_float(2, 5, 7), None, _float(2, 6, 2)),
            {},
            "length of stage_logits is 6; expected 5",
        ),
        (
            (_float(2, 5, 7), None, _float(3, 5, 2)),
            {},
            "batch size of stage_logits is 3; expected 2",
        ),
    ],
)
def test_combinations_that_are_not_defined_are_refused(inputs, attributes, message: str):
    with pytest.raises(ExportError, match=message):
        _infer(*inputs, **attributes)
