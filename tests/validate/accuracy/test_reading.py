from pathlib import Path

import numpy as np
import pytest

from moh_deploy.errors import ConfigError
from moh_deploy.validate.accuracy.reading import read_labels


@pytest.mark.parametrize(
    "text", ["3\n1\n2\n", "label\n3\n1\n2\n", "a,Labels\nx,3\ny,1\nz,2\n", "3\n1\n\n2"]
)
def test_csv_with_and_without_a_header(tmp_path: Path, text: str):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    labels = read_labels(path)
    assert labels.tolist() == [3, 1, 2]
    assert labels.dtype == np.int64
    path.write_text("3,1\n2,-100\n")  # a sequence of tokens a line
    assert read_labels(path).tolist() == [[3, 1], [2, -100]]


def test_npy_and_npz(tmp_path: Path):
    np.save(tmp_path / "one.npy", np.arange(3))
    np.savez(tmp_path / "one.npz", anything=np.arange(3))
    np.savez(tmp_path / "two.npz", x=np.zeros(2), labels=np.arange(3))
    for name in ("one.npy", "one.npz", "two.npz"):
        assert read_labels(tmp_path / name).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3\nx\n", "line 2: 'x' is no number"),
        ("1,2\n3\n", "line 2: 1 labels, the first line has 2"),
        ("file,class\na.png,3\n", "the first line is 'file,class', which names no column 'labels'"),
        ("a,label\nx\n", "line 2: there is no column 2"),
        ("", "holds no labels"),
        ("label\n", "holds no labels"),
    ],
)
def test_csv_that_holds_no_labels_is_refused(tmp_path: Path, text: str, message: str):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_labels(path)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path):
    (tmp_path / "text.npy").write_text("3\n1\n")
    (tmp_path / "text.csv").write_bytes(b"\xff\xfe\x00")
    np.savez(tmp_path / "many.npz", a=np.zeros(2), b=np.zeros(2))
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    np.save(tmp_path / "scalar.npy", np.array(3))
    for name, message in (
        ("text.npy", "cannot be read as an npy file"),
        ("text.csv", "cannot be read: it is not UTF-8"),
        ("many.npz", "has members 'a', 'b'; expected one array"),
        ("objects.npy", "cannot be read as an npy file"),
        ("scalar.npy", r"holds no labels: its shape is \[\]"),
        ("none.npy", "does not exist"),
        ("none.npz", "does not exist"),
        ("none.csv", "does not exist"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_labels(tmp_path / name)
