"""What the original refuses to look up, its package refuses, and nothing else."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import moh_deploy
from moh_deploy.errors import ConfigError
from moh_deploy.package import MODEL_NAME, OnnxPackage, PackageWriter
from moh_deploy.package.manifest_json import MANIFEST_NAME, manifest_text
from moh_deploy.runtime.open_runner import find_deployed, open_runner
from moh_deploy.serving.served_model import open_served
from moh_deploy.serving.settings import ServingSettings
from moh_deploy.system.npz import write_npz
from moh_deploy.validate.reference.layer_values import Recorder
from tests.labelled_package import write_language_model
from tests.nightly import nightly, sampled
from tests.true_manifest import finish_true

ROWS, PLACES = 9, 6


class Embedded(nn.Module):
    """Ids in a table of 9 rows, positions in one of 6, in many ways of writing both."""

    def __init__(self, tokens: str, positions: str) -> None:
        super().__init__()
        self.tokens, self.positions = tokens, positions
        self.table = nn.Parameter(torch.randn(ROWS, 4))
        self.places = nn.Parameter(torch.randn(PLACES, 4))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        length = ids.shape[1]
        counted = torch.arange(length)
        found = {
            "embedding": lambda: functional.embedding(ids, self.table),
            "index": lambda: self.table[ids],
            "index_select": lambda: self.table.index_select(0, ids.flatten()).unflatten(
                0, ids.shape
            ),
            "clamped": lambda: functional.embedding(ids.clamp(min=0), self.table),
            "part": lambda: functional.embedding(ids[:, :-1], self.table).mean(1, keepdim=True),
        }[self.tokens]()
        places = {
            "none": lambda: 0,
            "arange": lambda: functional.embedding(counted, self.places),
            "index": lambda: self.places[counted],
            "mask": lambda: functional.embedding((ids >= 0).long().cumsum(1) - 1, self.places),
        }[self.positions]()
        return found + places


CASES = [
    *((tokens, "none") for tokens in ("embedding", "index", "index_select", "clamped", "part")),
    *(("embedding", positions) for positions in ("arange", "index", "mask")),
]
IDS = (
    [[0, 8]],
    [[1, -1]],
    [[-1, 1]],
    [[-9, 1]],
    [[-10, 1]],
    [[9, 1]],
    [[1, 9]],
    [[1] * 6],
    [[1] * 7],
)


@nightly
@pytest.mark.parametrize(("tokens", "positions"), CASES)
def test_package_takes_the_ids_that_the_original_takes(tmp_path: Path, tokens: str, positions: str):
    model = Embedded(tokens, positions).eval()
    example = torch.randint(0, ROWS, (2, 5))
    moh_deploy.export(
        model, tmp_path / "package", inputs={"ids": example}, dynamic=["ids:0=batch,1=seq"]
    )
    with open_runner(tmp_path / "package") as runner:
        for ids in map(torch.tensor, IDS):
            given = {"ids": ids.numpy()}
            try:
                expected = model(ids).detach().numpy()
            except IndexError:
                with pytest.raises(ConfigError, match="a table of"):
                    runner.run(given)
                continue
            (got,) = runner.run(given).values()
            np.testing.assert_allclose(got, expected, atol=1e-5)


def ids_file(tmp_path: Path, ids: list[int]) -> Path:
    write_npz(tmp_path / "in.npz", {"ids": np.array([ids], np.int64)})
    return tmp_path / "in.npz"


REFUSED = r"input 'ids' is -1 at \[0, 1\], expected 0 to 7: .* 'table', a table of 8 rows"


def test_run_and_verify_refuse_an_id_below_the_table(tmp_path: Path):
    root = write_language_model(tmp_path / "package").root
    inputs = ids_file(tmp_path, [3, -1])
    with pytest.raises(ConfigError, match=REFUSED):
        moh_deploy.run(root, inputs=inputs, outputs=tmp_path / "out.npz")
    assert not (tmp_path / "out.npz").exists()
    with pytest.raises(ConfigError, match=REFUSED):
        moh_deploy.verify(root, inputs=[inputs])


def test_original_in_onnx_counts_from_the_end(tmp_path: Path):
    package: OnnxPackage = write_language_model(tmp_path / "package")
    manifest = replace(package.manifest, made_with={"onnxruntime": "1.24"})
    (package.root / MANIFEST_NAME).write_text(manifest_text(manifest))
    with open_runner(package.root) as runner:
        last = runner.run({"ids": np.array([[3, 7]])})
        np.testing.assert_array_equal(runner.run({"ids": np.array([[3, -1]])})["y"], last["y"])


@sampled(2)
@pytest.mark.parametrize("guard", [False, True])
def test_server_refuses_an_id_below_the_table_and_goes_on(tmp_path: Path, guard: bool):
    package = write_language_model(tmp_path / "unrecorded")
    known = Recorder.of(package).record({"ids": np.array([[3, 1]])})  # its known answer
    with PackageWriter(tmp_path / "package") as writer:
        shutil.copyfile(package.model_path, writer.path(MODEL_NAME))
        root = finish_true(writer, package.manifest, [known]).root
    served = open_served(find_deployed(root), ServingSettings(name="m", guard=guard))
    try:
        with pytest.raises(ConfigError, match=REFUSED):
            served.answer({"ids": np.array([[3, -1]])})
        assert served.answer({"ids": np.array([[3, 1]])}).rung == "kernels"
    finally:
        served.close()
