from dataclasses import replace

import numpy as np
import pytest

from moh_deploy.errors import ConfigError
from moh_deploy.package import TensorInfo
from moh_deploy.serving.batches import BatchAxis, scalars_of
from tests.handmade_package import MANIFEST


def test_batch_axis_is_the_first_of_all_inputs_and_outputs():
    assert BatchAxis.of(MANIFEST) == BatchAxis("batch")


def test_number_for_each_sample_has_no_axis_beside_the_batch():
    step, flag = TensorInfo("step", "int64", ("batch",)), TensorInfo("flag", "bool", ())
    batched = replace(MANIFEST, inputs=(*MANIFEST.inputs, step))
    assert scalars_of(batched) == {"step": 1}
    assert scalars_of(replace(batched, outputs=(flag,))) == {"flag": 0}


def test_limit_of_the_trace_is_the_most_samples():
    assert BatchAxis.of(replace(MANIFEST, dim_ranges={"batch": (1, 8)})) == BatchAxis("batch", 8)
    assert BatchAxis.of(replace(MANIFEST, dim_ranges={"batch": (2, 8)})) == BatchAxis("batch", 8, 2)


@pytest.mark.parametrize(
    "extra",
    [
        TensorInfo("cache", "float32", ("heads", "batch")),
        TensorInfo("square", "float32", ("batch", "batch")),
        TensorInfo("fixed", "float32", (2, 3)),
        TensorInfo("scalar", "float32", ()),
        TensorInfo("more", "float32", ("2*batch",)),
    ],
    ids=lambda item: item.name,
)
def test_requests_are_not_joined_where_an_axis_is_another(extra: TensorInfo):
    assert BatchAxis.of(replace(MANIFEST, inputs=(*MANIFEST.inputs, extra))) is None


def test_each_request_gets_its_part():
    axis = BatchAxis("batch")
    requests = [{"x": np.full((size, 2), size)} for size in (1, 3, 2)]
    joined = axis.joined(requests)
    parts = axis.split({"y": joined["x"] * 10}, [1, 3, 2])
    assert [part["y"].tolist() for part in parts] == [[[s * 10] * 2] * s for s in (1, 3, 2)]


def test_requests_of_other_sizes_have_other_keys():
    axis = BatchAxis("batch")
    keys = [axis.key({"x": np.zeros(shape)}) for shape in [(1, 2), (5, 2), (1, 3)]]
    assert keys[0] == keys[1] != keys[2]


def test_output_of_another_size_is_refused():
    with pytest.raises(ConfigError, match="output 'y' has 5 samples, expected the 3 of the batch"):
        BatchAxis("batch").split({"y": np.zeros((5, 1))}, [1, 2])
