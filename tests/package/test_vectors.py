"""Members of `vectors.npz` that older packages lack, and of which a layer may have none."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moh_deploy.errors import PackageError
from moh_deploy.package import (
    MOST_CORPUS_BYTES,
    MOST_SAMPLES,
    CorpusSample,
    MinedToken,
    OnnxPackage,
    bounded,
)
from moh_deploy.package.vectors import (
    CORPUS_NAME,
    check_vectors,
    read_corpus,
    read_vectors,
    write_vectors,
)
from moh_deploy.package.vectors import write_corpus as write_file
from moh_deploy.package.writer import replace_corpus
from moh_deploy.system.npz import read_npz, write_npz
from tests.handmade_package import MANIFEST, vectors, write_package
from tests.nightly import nightly
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


def sample(seed: int, *, batch: int = 1, margin: float = 1e-6) -> CorpusSample:
    mined = (MinedToken(0, (0, 2), margin), MinedToken(0, (0, 1), 0.5))
    return CorpusSample(vectors(seed=seed, batch=batch), mined)


def test_corpus_reads_back_as_it_was_written(tmp_path: Path):
    written = [sample(1, margin=0.1), replace(sample(2), reference="the original model")]
    write_file(tmp_path / CORPUS_NAME, written)
    read = read_corpus(tmp_path / CORPUS_NAME, MANIFEST)
    assert [(item.mined, item.reference, item.margin) for item in read] == [
        (item.mined, item.reference, item.margin) for item in written
    ]
    for item, other in zip(read, written, strict=True):
        np.testing.assert_array_equal(item.vectors.inputs["x"], other.vectors.inputs["x"])
        np.testing.assert_array_equal(item.vectors.gates[0], other.vectors.gates[0])
        assert item.digest() == other.digest()


@nightly
def test_corpus_is_bounded_and_holds_nothing_twice():
    many = [sample(seed) for seed in range(MOST_SAMPLES + 3)]
    assert bounded([many[0], *many]) == tuple(many[:MOST_SAMPLES])
    huge = sample(99, batch=MOST_CORPUS_BYTES // 100)
    assert bounded([huge, *many[:2]]) == tuple(many[:2])


def test_more_than_a_corpus_may_hold_is_not_written(tmp_path: Path):
    many = [sample(seed) for seed in range(MOST_SAMPLES + 1)]
    with pytest.raises(PackageError, match=r"17 samples .* expected at most 16 of 4194304 bytes"):
        write_file(tmp_path / CORPUS_NAME, many)


def test_package_with_a_corpus_keeps_everything_else(tmp_path: Path):
    package = write_package(tmp_path / "package", external_data=True)
    written = replace_corpus(package, [sample(1)])
    opened = OnnxPackage.open(written.root)
    assert [item.digest() for item in opened.corpus] == [sample(1).digest()]
    files = dict(opened.manifest.files)
    assert files.pop(CORPUS_NAME)
    assert files == package.manifest.files
    assert replace(opened.manifest, files={}) == replace(package.manifest, files={})
    emptied = replace_corpus(opened, [])
    assert (emptied.corpus, emptied.manifest.files) == ((), package.manifest.files)


def test_changed_corpus_is_refused(tmp_path: Path):
    package = replace_corpus(write_package(tmp_path / "package"), [sample(1)])
    write_file(package.root / CORPUS_NAME, [sample(2)])
    with pytest.raises(PackageError, match=r"corpus\.npz has changed since the package"):
        OnnxPackage.open(package.root)


def test_corpus_that_the_manifest_does_not_list_is_not_opened(tmp_path: Path):
    package = write_package(tmp_path / "package")
    (package.root / CORPUS_NAME).write_bytes(b"not an npz file")
    assert OnnxPackage.open(package.root).corpus == ()


def test_corpus_of_unknown_layers_is_refused(tmp_path: Path):
    path = tmp_path / CORPUS_NAME
    write_file(path, [sample(1)])
    members = read_npz(path, error=PackageError)
    write_npz(path, {**members, "0/mined/layers": np.asarray([0, 7])})
    with pytest.raises(PackageError, match=r"layers \[0, 7\], expected numbers of the 1 layers"):
        read_corpus(path, MANIFEST)
    del members["0/mined/tokens"]
    write_npz(path, members)
    with pytest.raises(PackageError, match=r"set 0 does not say what was mined"):
        read_corpus(path, MANIFEST)
