import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from moh_deploy.errors import CheckpointError
from moh_deploy.frontend.load.fileform import detect_form
from tests.frontend.checkpoints import Net


def test_form_is_told_by_content_and_not_by_name(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    torch.save(Net().state_dict(), path)
    assert detect_form(path) == "torch_zip"


def test_file_of_before_zip_archives_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    torch.save(Net().state_dict(), path, _use_new_zipfile_serialization=False)
    assert detect_form(path) == "torch_legacy"


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.pt: no such file"):
        detect_form(tmp_path / "absent.pt")


def test_directory_is_refused_naming_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match="is a directory") as caught:
        detect_form(tmp_path)
    assert "model.safetensors" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"hello world, hello", "is not a checkpoint; it starts with b'hello wo'"),
        (pickle.dumps({"a": 1}), "is a plain pickle"),
        (b"\xff\x00\x00\x00\x00\x00\x00\x00{", "is a truncated safetensors file"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        detect_form(path)


@pytest.mark.parametrize("kept_share", [0.1, 0.5, 0.99])
def test_truncated_archive_is_refused(tmp_path: Path, kept_share: float) -> None:
    path = tmp_path / "model.pt"
    torch.save(Net().state_dict(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept_share)])
    with pytest.raises(CheckpointError, match="is a truncated or damaged archive"):
        detect_form(path)


def test_zip_that_is_no_checkpoint_is_refused_naming_its_members(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match=r"not a checkpoint; it holds readme\.txt"):
        detect_form(path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_archive_is_refused_saying_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.jit.trace(Net().eval(), torch.ones(2, 3)).save(path)
    with pytest.raises(CheckpointError, match="is a TorchScript archive") as caught:
        detect_form(path)
    assert "--factory" in str(caught.value.hint)
