from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moh_deploy.errors import ConfigError
from moh_deploy.package import TensorInfo
from moh_deploy.system.npz import Array, write_npz
from moh_deploy.validate.reference.samples import UserVectors, read_user_vectors, split_members
from tests.handmade_package import MANIFEST

X = np.zeros((2, 3, 8), np.float32)


def read(tmp_path: Path, **members: Array) -> UserVectors:
    write_npz(tmp_path / "user.npz", members)
    return read_user_vectors(tmp_path / "user.npz", MANIFEST)


def test_members_named_like_inputs_and_outputs_are_told_apart(tmp_path: Path):
    user = read(tmp_path, y=X + 1, x=X)
    assert list(user.inputs) == ["x"]
    assert list(user.expected) == ["y"]
    assert user.sizes == {"batch": 2, "seq": 3}


def test_members_of_other_names_are_taken_by_position_and_that_is_said(tmp_path: Path):
    user = read(tmp_path, arr_0=X, y=X)
    assert list(user.inputs) == ["x"]
    assert list(user.expected) == ["y"]
    order = "no member is called as an input, so order counts: 'x' is 'arr_0'"
    assert user.by_order == f"{tmp_path / 'user.npz'}: {order}"
    assert read(tmp_path, x=X).by_order == ""


TEXT_MODEL = replace(
    MANIFEST, inputs=tuple(TensorInfo(n, "int64", (2,)) for n in ("input_ids", "attention_mask"))
)


def test_misspelt_members_are_not_taken_by_position():
    ids = np.zeros(2, np.int64)
    with pytest.raises(ConfigError, match="there is no input 'attention_msk': the model") as error:
        split_members({"attention_msk": ids, "input_idz": ids + 1}, TEXT_MODEL)
    assert str(error.value.hint).startswith("Did you mean 'attention_mask'?")
    with pytest.raises(ConfigError, match="there is no input 'mask'"):
        split_members({"mask": ids, "tokens": ids + 1}, TEXT_MODEL)
    found = split_members({"tokens": ids, "mask": ids + 1}, TEXT_MODEL)
    assert found.by_order.endswith("'input_ids' is 'tokens', 'attention_mask' is 'mask'")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, r"user\.npz: input 'x' is missing: got none, expected 'x'"),
        ({"a": X, "b": X}, "members 'a', 'b' are not inputs of the model"),
        ({"x": X, "z": X}, "there is no input 'z'"),
        ({"x": X[..., :7]}, r"user\.npz: input 'x' .* axis 2 is fixed at 8, got 7"),
    ],
)
def test_file_that_does_not_fit_is_refused(tmp_path: Path, members: dict[str, Array], message: str):
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, **members)
