"""A command replaces a file only where it is empty, or of the kind that the command writes."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from moh_deploy.errors import ConfigError, PackageError
from moh_deploy.package.onnx_outline import ONNX_FILE
from moh_deploy.report.document import About, Document
from moh_deploy.report.html.page import HTML_FILE, page
from moh_deploy.report.junit import JUNIT_FILE, junit
from moh_deploy.report.markdown import MARKDOWN_FILE, markdown
from moh_deploy.serving.drift.reference import REFERENCE_FILE
from moh_deploy.serving.guard.guard_io import CONTROL_FILE, Control, write_control
from moh_deploy.system.npz import NPZ_FILE, write_npz
from moh_deploy.system.replaceable import FileKind, check_file_output
from tests.handmade_package import write_package

KINDS = {
    "onnx": ONNX_FILE,
    "npz": NPZ_FILE,
    "junit": JUNIT_FILE,
    "markdown": MARKDOWN_FILE,
    "html": HTML_FILE,
    "reference": REFERENCE_FILE,
    "control": CONTROL_FILE,
}
ABOUT, DOCUMENT = About("build/model"), Document("verify", ())


def _onnx(path: Path) -> None:
    root = write_package(path.with_name("package")).root
    path.write_bytes((root / "model.onnx").read_bytes())


# How each is written by a command, but for references: those of tests/serving/drift are.
WRITERS: dict[str, Callable[[Path], object]] = {
    "onnx": _onnx,
    "npz": lambda path: write_npz(path, {"x": np.zeros(3)}),
    "junit": lambda path: path.write_text(junit(DOCUMENT, ABOUT)),
    "markdown": lambda path: path.write_text(markdown(DOCUMENT, ABOUT)),
    "html": lambda path: path.write_text(page(DOCUMENT, ABOUT)),
    "control": lambda path: write_control(path, Control()),
}
FOREIGN = {
    "source": b"import torch\n",
    "checkpoint": b"PK\x03\x04moh/data.pkl",
    "notes": b"# Notes\n\n- a page\n",
    "page": b"<!DOCTYPE html>\n<title>Mine</title>\n",
    "xml": b'<?xml version="1.0"?>\n<testsuites name="pytest">\n',
    "json": b'{"learning_rate": 0.1}\n',
}


def test_file_of_another_kind_stays(tmp_path: Path):
    mine = tmp_path / "mine"
    for name, kind in KINDS.items():
        noun = f"an {kind.noun}" if name == "onnx" else f"a {kind.noun}"
        for content in FOREIGN.values():
            mine.write_bytes(content)
            with pytest.raises(PackageError) as refused:
                check_file_output(mine, kind)
            words = f"{mine} exists and is not {noun}: it will not be overwritten."
            assert refused.value.message == words


def test_file_of_that_kind_may_be_replaced_by_it_alone(tmp_path: Path):
    for name, write in WRITERS.items():
        write(tmp_path / name)
        check_file_output(tmp_path / name, KINDS[name])
        for other in KINDS.keys() - {name}:
            with pytest.raises(PackageError, match="will not be overwritten"):
                check_file_output(tmp_path / name, KINDS[other])


def test_new_and_empty_files_may_be_written(tmp_path: Path):
    (tmp_path / "empty").touch()
    for kind in KINDS.values():
        check_file_output(tmp_path / "new", kind)
        check_file_output(tmp_path / "empty", kind)


def test_input_is_no_output_by_whatever_name(tmp_path: Path):
    np.savez(tmp_path / "in.npz", x=np.zeros(3))
    (tmp_path / "link.npz").symlink_to(tmp_path / "in.npz")
    os.link(tmp_path / "in.npz", tmp_path / "same.npz")
    for name in ("in.npz", "link.npz", "same.npz"):
        with pytest.raises(ConfigError, match=f"{name} is to be written, and is read as well"):
            check_file_output(tmp_path / name, NPZ_FILE, reads=[tmp_path / "in.npz"])
    check_file_output(tmp_path / "out.npz", NPZ_FILE, reads=[tmp_path / "in.npz"])


def test_file_that_cannot_be_read_stays(tmp_path: Path):
    def denied(path: Path) -> bool:
        raise PermissionError(path)

    (tmp_path / "mine").write_bytes(b"...")
    with pytest.raises(PackageError, match="exists and is not a thing"):
        check_file_output(tmp_path / "mine", FileKind("thing", denied))
