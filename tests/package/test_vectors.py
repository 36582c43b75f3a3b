"""Members of `vectors.npz` that older packages lack, and of which a layer may have none."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moh_deploy.errors import PackageError
from moh_deploy.package.vectors import check_vectors, read_vectors, write_vectors
from moh_deploy.system.npz import read_npz, write_npz
from tests.two_layers import write_two_layers


def test_scores_and_fingerprints_come_back_layer_by_layer(tmp_path: Path):
    package = write_two_layers(tmp_path / "package")
    (known,) = package.vectors
    scores = np.random.default_rng(0).random((2, 3, 4)).astype(np.float32)
    written = replace(known, scores=(None, scores), attention=(scores, None))
    write_vectors(tmp_path / "vectors.npz", [written])
    (found,) = read_vectors(tmp_path / "vectors.npz", package.manifest)
    assert found.scores[0] is None
    np.testing.assert_array_equal(found.scores[1], scores)
    assert found.attention[1] is None


def test_runs_of_before_have_neither(tmp_path: Path):
    package = write_two_layers(tmp_path / "package")
    write_vectors(tmp_path / "vectors.npz", [replace(package.vectors[0], scores=(), attention=())])
    (found,) = read_vectors(tmp_path / "vectors.npz", package.manifest)
    assert (found.scores, found.attention) == ((), ())


def test_scores_of_a_layer_that_there_is_not_are_refused(tmp_path: Path):
    package = write_two_layers(tmp_path / "package")
    members = read_npz(package.root / "vectors.npz", error=PackageError)
    write_npz(tmp_path / "vectors.npz", {**members, "0/scores/7": np.zeros((2, 3, 4), np.float32)})
    with pytest.raises(PackageError, match=r"scores of layers \['7'\], the manifest has 2 layers"):
        read_vectors(tmp_path / "vectors.npz", package.manifest)


def test_scores_and_fingerprints_of_another_form_are_refused(tmp_path: Path):
    package = write_two_layers(tmp_path / "package")
    (known,) = package.vectors
    for kind, shape in (("scores", (2, 3, 5)), ("attention", (2, 3, 7)), ("scores", (2, 4, 4))):
        wrong = replace(known, **{kind: (np.zeros(shape, np.float32), None)})
        with pytest.raises(PackageError, match=rf"set 0: {kind} 0 are float32\[2, "):
            check_vectors(tmp_path / "vectors.npz", [wrong], package.manifest)
