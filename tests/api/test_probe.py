import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import moh_deploy
from moh_deploy.errors import ConfigError, PackageError, ValidationError
from moh_deploy.package import OnnxPackage
from moh_deploy.system.npz import write_npz
from moh_deploy.validate.edge_cases.report import ProbeReport
from moh_deploy.validate.reference.reference import Answers
from moh_deploy.validate.reference.samples import Sample
from tests.edge_case_package import inputs, write_edge_package
from tests.handmade_package import write_package
from tests.nightly import nightly, sampled
from tests.runtime.tensorrt.engines import write_engine
from tests.true_manifest import finish_true
from tests.validate.edge_cases import planted_bugs

LONGEST = {"batch": 3, "seq": 9}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return write_edge_package(tmp_path / "package").root


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "inputs"
    folder.mkdir()
    given = inputs(batch=12, seq=4, seed=3)
    given["x"][5, 1] *= 1e-5  # all heads of the first layer nearly tie
    write_npz(folder / "a.npz", given)
    write_npz(folder / "b.npz", inputs(batch=12, seq=4, seed=4))
    return folder


def probe(package: Path, **options: object) -> ProbeReport:
    given = {"kernels": "off", "longest": LONGEST, **options}
    return moh_deploy.probe(package, **given)  # type: ignore[arg-type]


def test_planted_bug_raises_a_sentence_that_names_layer_and_case(tmp_path: Path):
    bug = planted_bugs.nan_as_the_smallest
    report = probe(write_edge_package(tmp_path / "package", bug).root)
    with pytest.raises(
        ValidationError,
        match=r"edge cases: gates of layer 'blocks.0.attn' in case 'NaN': token \[0, 0\], with NaN"
        r" among its logits, has not 2 gates that are NaN",
    ):
        report.raise_if_failed()


@nightly
def test_inputs_of_nothing_but_nan_are_not_searched_and_no_pass(package: Path, tmp_path: Path):
    given = inputs(batch=3)
    given["x"][:] = np.nan
    write_npz(tmp_path / "nan.npz", given)
    report = probe(package, inputs=[tmp_path / "nan.npz"])
    (found,) = [result for result in report.results if result.case == "least clear inputs"]
    assert (found.status, found.detail) == (
        "not run",
        "there is nothing to search in these inputs: they give nothing but NaN scores.",
    )
    assert report.reasons == (found.detail,)


@sampled(2)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"valid_tokens": "valit"}, "valid_tokens is 'valit', but the model has x, valid"),
        ({"valid_tokens": "x"}, r"'x' is float32\[2, 5, 24\], expected a mask of valid tokens"),
        ({"longest": {"sek": 9}}, "longest is of 'sek', but the dynamic dimensions are batch, seq"),
        ({"longest": {"seq": 0}}, "longest of 'seq' is 0, expected at least 1"),
        ({"update_corpus": True}, "update_corpus needs inputs to search"),
    ],
)
def test_option_that_does_not_fit_is_refused(
    package: Path, options: dict[str, object], message: str
):
    with pytest.raises(ConfigError, match=message):
        probe(package, **options)


def test_inputs_are_searched_and_nothing_is_written_unasked(package: Path, files: Path):
    before = {path.name: path.read_bytes() for path in package.iterdir()}
    report = probe(package, inputs=[files])
    assert (report.mining.searched, report.mining.tokens) == (24, 24 * 4 * 2)
    assert report.mining.names[0] == "a.npz[5]"
    assert (report.corpus, report.corpus_written) == ((), False)
    kept, found = (result for result in report.results if result.kind == "corpus")
    assert (kept.status, found.case, found.status) == (
        "not applicable",
        "least clear inputs",
        "passed",
    )
    assert {path.name: path.read_bytes() for path in package.iterdir()} == before


def test_corpus_is_kept_and_run_by_probe_and_verify(package: Path, files: Path):
    written = probe(package, inputs=[files], update_corpus=True)
    assert (len(written.corpus), written.corpus_written) == (16, True)
    opened = OnnxPackage.open(package)
    assert [item.digest() for item in opened.corpus] == [item.digest() for item in written.corpus]
    (result,) = [item for item in probe(package).results if item.kind == "corpus"]
    assert (result.status, result.detail[:12]) == ("passed", "16 samples, ")
    report = moh_deploy.verify(package, kernels="off")
    assert report.equal
    assert report.vector_sets == 17
    assert report.reference.endswith(
        "regression corpus, recorded from the package's own function bodies (not the original"
        " model)"
    )
    assert moh_deploy.verify(package, kernels="off", vectors=1).vector_sets == 1


@dataclass(frozen=True)
class Fake:
    """An original that computes `scale` times what the function bodies do."""

    scale: float
    name: str = "original model fake.pt"

    def answers(self, package: OnnxPackage, samples: Sequence[Sample]) -> Answers:
        """Return that."""
        changed = [
            replace(sample.known, outputs={"y": sample.known.outputs["y"] * np.float32(self.scale)})
            for sample in samples
        ]
        return Answers(tuple(changed), has_gates=True)


@nightly
def test_original_records_what_is_found(package: Path, files: Path):
    wrong = probe(package, inputs=[files], original=Fake(1.5))
    assert wrong.reasons[0].startswith("case 'least clear inputs': output 'y' of vectors corpus 0")
    right = probe(package, inputs=[files], update_corpus=True, original=Fake(1.0))
    assert right.passed
    assert {item.reference for item in right.corpus} == {"the original model"}
    report = moh_deploy.verify(package, kernels="off")
    assert report.reference.endswith("regression corpus, recorded from the original model")


@nightly
def test_original_takes_the_place_of_function_bodies(package: Path, files: Path):
    probe(package, inputs=[files], update_corpus=True)
    report = probe(package, inputs=[files], update_corpus=True, original=Fake(1.0))
    assert {item.reference for item in report.corpus} == {"the original model"}
    again = probe(package, inputs=[files], update_corpus=True)
    assert {item.reference for item in again.corpus} == {"the original model"}


def test_original_without_inputs_is_refused(package: Path):
    with pytest.raises(ConfigError, match=r"original model fake\.pt is to record what is found"):
        probe(package, original=Fake(1.0))


@nightly
def test_package_that_computes_something_else_fails_its_corpus(package: Path, files: Path):
    probe(package, inputs=[files], update_corpus=True)
    opened = OnnxPackage.open(package)
    model = onnx.load(package / "model.onnx")
    (weight,) = [item for item in model.graph.initializer if item.name == "v_weight_1"]
    changed = 0.9 * onnx.numpy_helper.to_array(weight)
    weight.CopyFrom(onnx.numpy_helper.from_array(changed.astype(np.float32), weight.name))
    with moh_deploy.package.PackageWriter(package) as writer:
        onnx.save(model, writer.path("model.onnx"))
        finish_true(writer, opened.manifest, (), opened.corpus)
    (result,) = [item for item in probe(package).results if item.kind == "corpus"]
    assert result.status == "failed"
    assert result.detail.startswith("case 'regression corpus': output 'y' of vectors corpus 0")
    report = moh_deploy.verify(package, kernels="off")
    assert not report.equal


@nightly
def test_other_commands_keep_the_corpus(package: Path, files: Path, tmp_path: Path):
    probe(package, inputs=[files], update_corpus=True)
    digests = [item.digest() for item in OnnxPackage.open(package).corpus]
    moh_deploy.precision(package, to="float16", output=tmp_path / "half")
    moh_deploy.tune(package, choose={"all": "dense"})
    for root in (tmp_path / "half", package):
        assert [item.digest() for item in OnnxPackage.open(root).corpus] == digests
        assert moh_deploy.verify(root, kernels="off").equal


def test_model_without_layers_is_probed_by_its_inputs(tmp_path: Path):
    package = write_package(tmp_path / "package", with_layer=False).root
    report = probe(package)
    assert report.passed
    assert {result.kind for result in report.results} == {"input", "corpus"}


def test_package_without_recorded_runs_proves_nothing(tmp_path: Path):
    package = write_package(tmp_path / "package", sets=()).root
    report = probe(package)
    assert not report.passed
    assert report.reasons == ("no case could be run, so nothing is proven.",)


def test_package_that_cannot_be_written_is_refused_before_any_work(
    package: Path, files: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "access", lambda path, _: path != package)
    with pytest.raises(PackageError, match="the corpus cannot be written"):
        probe(package, inputs=[files], update_corpus=True)


def test_engine_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="is an engine: it has no place to put logits"):
        probe(write_engine(tmp_path / "engine"))
