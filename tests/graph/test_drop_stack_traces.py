"""What is handed to others says nothing of the author's machine and source."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

import moh_deploy
from moh_deploy.package import MODEL_NAME, OnnxPackage, PackageWriter
from tests.exporting import export, prove_in_this_process
from tests.small_moh import build

TRACE = "pkg.torch.onnx.stack_trace"


@pytest.fixture
def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OnnxPackage:
    prove_in_this_process(monkeypatch)
    export(build(), tmp_path / "package")
    return OnnxPackage.open(tmp_path / "package")


def assert_nothing_of_the_author(folder: Path) -> None:
    paths = [str(Path(__file__).parent.parent).encode(), str(Path(moh_deploy.__file__)).encode()]
    for file in (path for path in folder.rglob("*") if path.is_file()):
        content = file.read_bytes()
        assert not [one for one in (*paths, b"F.scaled_dot_product_attention") if one in content]


def test_package_has_no_paths_and_lines_of_source(exported: OnnxPackage, tmp_path: Path):
    assert_nothing_of_the_author(exported.root)


def test_what_is_made_of_an_earlier_package_has_none(exported: OnnxPackage, tmp_path: Path):
    model = onnx.load(exported.model_path)
    for node in model.graph.node:
        node.metadata_props.add(key=TRACE, value=f'File "{__file__}", line 1, in forward')
    with PackageWriter(tmp_path / "earlier") as writer:
        onnx.save(model, writer.path(MODEL_NAME))
        earlier = writer.finish(exported.manifest, exported.vectors, exported.corpus)
    made = tmp_path / "made"
    made.mkdir()
    moh_deploy.precision(earlier.root, to="float16", output=made / "half")
    moh_deploy.inline(earlier.root, output=made / "flat.onnx")
    assert_nothing_of_the_author(made)
