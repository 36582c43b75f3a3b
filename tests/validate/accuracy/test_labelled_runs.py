from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moh_deploy.errors import ConfigError
from moh_deploy.package import TensorInfo
from moh_deploy.validate.accuracy.labelled_runs import (
    Dataset,
    LabelledSamples,
    choose_size,
    sample_axis,
    samples_of,
)
from moh_deploy.validate.accuracy.task import SampleFiles

X = TensorInfo("x", "float32", ("batch", 2))
CACHE = TensorInfo("cache", "float32", (3, "batch", 2))
BIAS = TensorInfo("bias", "float32", (5, 5))
LOGITS = TensorInfo("logits", "float32", ("batch", 4))


def held(count: int) -> LabelledSamples:
    """Return inputs that count samples on their first axis, their second, and nowhere."""
    numbers = np.arange(count, dtype=np.float32)
    inputs = {
        "x": np.stack([numbers, numbers], axis=1),
        "cache": np.broadcast_to(numbers[None, :, None], (3, count, 2)),
        "bias": np.zeros((5, 5), np.float32),
    }
    return LabelledSamples(
        Path("val.npz"), inputs, {"logits": np.tile(numbers[:, None], 4)}, {}, {}, "val"
    )


def test_arrays_are_cut_along_the_axis_of_samples_and_others_stay_whole():
    samples = samples_of(held(7), (X, CACHE, BIAS), sample_axis([LOGITS]))
    batches = list(Dataset(samples, np.arange(7)).batches(3, lambda count: True))
    assert [item.labels.tolist() for item in batches] == [[0, 1, 2], [3, 4, 5], [6]]
    for item in batches:
        assert item.inputs["x"][:, 0].tolist() == item.labels.tolist()
        assert item.inputs["cache"][1, :, 0].tolist() == item.labels.tolist()
        assert item.inputs["bias"].shape == (5, 5)
        assert item.expected["logits"][:, 3].tolist() == item.labels.tolist()
        assert item.added == 0


def test_last_batch_is_filled_up_with_copies_of_its_last_sample_which_are_no_results():
    samples = samples_of(held(5), (X, CACHE, BIAS), sample_axis([LOGITS]))
    *_, last = Dataset(samples, np.arange(5)).batches(3, lambda count: count == 3)
    assert (last.added, last.start, last.labels.tolist()) == (1, 3, [3, 4])
    assert last.inputs["x"][:, 0].tolist() == [3, 4, 4]
    assert last.inputs["cache"][2, :, 1].tolist() == [3, 4, 4]
    assert last.real(last.expected)["logits"].shape == (2, 4)
    windows, prototypes = np.zeros((12, 4)), np.zeros((9, 2))  # 4 windows of each sample; of none
    others = {"loss": np.array(2.0), "windows": windows, "prototypes": prototypes}
    assert last.real(others) == others


@pytest.mark.parametrize("name", ["x", "logits"])
def test_array_without_an_axis_of_samples_is_refused(name: str):
    whole, number = held(1), {name: np.array(0.5, np.float32)}
    inputs = {k: number.get(k, array) for k, array in whole.inputs.items()}
    expected = {k: number.get(k, array) for k, array in whole.expected.items()}
    with pytest.raises(ConfigError, match=rf"'{name}' is \[\], expected samples on axis 0"):
        samples_of(
            replace(whole, inputs=inputs, expected=expected),
            (X, CACHE, BIAS),
            sample_axis([LOGITS]),
        )


def test_fixed_batch_is_told_by_its_number():
    fixed = [TensorInfo(item.name, item.dtype, (3, *item.shape[1:])) for item in (X, LOGITS)]
    samples = samples_of(held(8), (fixed[0], BIAS), sample_axis(fixed[1:]))
    assert samples.axes == {"x": 0, "logits": 0}


def test_axis_of_samples_that_cannot_be_told_is_refused():
    flat = TensorInfo("flat", "float32", ("2*batch", 4))
    for outputs in ([flat], [LOGITS, flat], [TensorInfo("loss", "float32", ())]):
        with pytest.raises(ConfigError, match="which axis counts samples cannot be told"):
            sample_axis(outputs)
    with pytest.raises(ConfigError, match="no input of the model has an axis 'batch'"):
        samples_of(held(3), (BIAS,), sample_axis([LOGITS]))


def test_size_of_a_batch_is_what_runs_nearest_below_what_is_wanted():
    assert choose_size(64, lambda count: True) == 64
    assert choose_size(64, lambda count: count <= 10) == 10
    assert choose_size(4, lambda count: count >= 8) == 8
    with pytest.raises(ConfigError, match="at no number of samples"):
        choose_size(4, lambda count: False)


def test_samples_are_placed_in_their_files():
    files = SampleFiles(("a.npz", "b.npz"), (3, 2))
    assert " ".join(map(files.place, range(5))) == "a.npz[0] a.npz[1] a.npz[2] b.npz[0] b.npz[1]"
