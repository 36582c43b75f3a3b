from __future__ import annotations

import numpy as np

from moh_deploy.package import TensorInfo
from moh_deploy.validate.compare.checks import Top1Agreement, holds_classes, top_1_agreement


def test_logits_are_told_by_type_and_shape():
    for dtype, shape in (("float32", ("batch", 10)), ("float16", ("batch", "seq", 500))):
        assert holds_classes(TensorInfo("y", dtype, shape))
    for dtype, shape in (
        ("float32", ("batch", "seq")),  # a number for each token
        ("float32", ("batch", 1)),
        ("float32", (10,)),
        ("float32", ("batch", 3, 32, 32)),  # an image
        ("int64", ("batch", 10)),
    ):
        assert not holds_classes(TensorInfo("y", dtype, shape)), (dtype, shape)


def test_rows_with_the_same_first_class_are_counted():
    reference = np.array([[[0, 1, 2], [3, 1, 2]], [[0, 5, 2], [0, 1, 2]]], np.float32)
    got = reference.copy()
    got[0, 0] = [9, 1, 2]
    assert top_1_agreement(got, reference) == Top1Agreement(3, 4)
    assert top_1_agreement(got[:0], reference[:0]) == Top1Agreement(0, 0)
