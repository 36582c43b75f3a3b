"""Other tokens for a text model: found by the routing of its layers, with padding left out."""

from pathlib import Path

import numpy as np
import pytest
import torch

import moh_deploy
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.models import PackageDir
from moh_deploy.serving.drift.reference import read_reference
from moh_deploy.serving.served_model import open_served
from moh_deploy.serving.settings import ServingSettings
from moh_deploy.system.npz import Array, write_npz
from tests.exporting import export
from tests.nightly import nightly
from tests.zoo.collection import ZOO
from tests.zoo.language import VOCAB

pytestmark = nightly

WINDOW, SEQ = 64, 9


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> OnnxPackage:
    """The zoo's language model of whole prompts."""
    output = tmp_path_factory.mktemp("text") / "package"
    model = next(item for item in ZOO if item.name == "llama_prefill")
    with torch.no_grad():
        export(model.build(), output, inputs=model.inputs(), valid_tokens="attention_mask")
    return OnnxPackage.open(output)


def prompts(folder: Path, name: str, tokens: range, count: int, seed: int) -> Path:
    """Write prompts of random tokens, of 6 to 9 of them, padded on the right."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(6, SEQ + 1, count)
    arrays: dict[str, Array] = {
        "input_ids": rng.choice(np.array(tokens), size=(count, SEQ)),
        "attention_mask": (np.arange(SEQ) < lengths[:, None]).astype(np.int64),
    }
    path = folder / f"{name}.npz"
    write_npz(path, arrays)
    return path


def test_other_tokens_are_found_within_a_window_and_the_same_ones_are_not(
    package: OnnxPackage, tmp_path: Path
):
    known, other = range(VOCAB // 2), range(VOCAB // 2, VOCAB)
    reference = tmp_path / "reference.json"
    good = prompts(tmp_path, "good", known, 400, seed=0)
    moh_deploy.profile(package.root, reference, inputs=[good], window=WINDOW)
    layer = read_reference(reference).layers[0]
    assert layer.tokens == np.load(good)["attention_mask"].sum() < 400 * SEQ
    for name, tokens in (("same", known), ("other", other)):
        sent = prompts(tmp_path, name, tokens, 8 * WINDOW, seed=1)
        dump = served(package, sent, tmp_path / f"{name}-dump.npz")
        found = moh_deploy.watch(dump, reference=reference)
        assert [bool(window.alarms) for window in found.windows] == [name == "other"] * 8


def served(package: OnnxPackage, sent: Path, dump: Path) -> Path:
    """Serve prompts in batches of eight, and dump what was counted of each."""
    model = open_served(PackageDir(package.root), ServingSettings("text", threads=1))
    model.telemetry.start_window(sample_every=1)
    arrays = dict(np.load(sent))
    for start in range(0, 8 * WINDOW, 8):
        batch = {name: value[start : start + 8] for name, value in arrays.items()}
        model.answer(batch, (1,) * 8)
    recorded = model.telemetry.dump_window()
    recorded.write(dump)
    model.close()
    return dump
