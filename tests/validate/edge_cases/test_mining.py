from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from moh_deploy.errors import ExportError
from moh_deploy.package import MOST_SAMPLES, CorpusSample, OnnxPackage, VectorSet
from moh_deploy.system.npz import Array
from moh_deploy.validate.edge_cases.mining import cut_into_samples, grown, mine, recorded_by
from moh_deploy.validate.reference.layer_values import Recorder
from moh_deploy.validate.reference.reference import Answers
from moh_deploy.validate.reference.samples import Sample
from tests.edge_case_package import WIDTH, inputs, write_edge_package
from tests.two_layers import write_two_layers


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> OnnxPackage:
    return write_edge_package(tmp_path_factory.mktemp("mining") / "package")


def sample(given: dict[str, Array], name: str = "in.npz") -> Sample:
    batch, seq = given["x"].shape[:2]
    return Sample(VectorSet({"batch": batch, "seq": seq}, given, {}, (), ()), name, Path(name))


def test_recorded_margin_of_nan_excuses_every_choice(package: OnnxPackage):
    given = inputs()
    given["x"][1, 2] = np.nan
    run = Recorder.of(package).scored_run(given)
    assert run.vectors.margins[0][1, 2] == 0
    assert not run.is_scored[0][1, 2]
    assert run.is_scored[0].sum() == run.is_scored[0].size - 1


def test_padding_and_nan_are_not_searched(package: OnnxPackage):
    given = inputs(batch=3, seq=4)
    given["x"][0, 0] = 0.0  # nearly tied, all three: padding, NaN, and a token that counts
    given["valid"][0, 0] = False
    given["x"][1, 1] = np.nan
    given["x"][2, 2] *= 1e-3
    cut = list(cut_into_samples(package.manifest, [sample(given)]))
    mined = mine(Recorder.of(package), cut, valid_tokens="valid")
    named = [
        (name, item.mined[0].token) for name, item in zip(mined.names, mined.samples, strict=True)
    ]
    assert named[0] == ("in.npz[2]", (0, 2))
    assert ("in.npz[0]", (0, 0)) not in named


def test_recorded_margins_belong_to_the_gates(package: OnnxPackage):
    recorded = Recorder.of(package).record(inputs())
    assert recorded.sizes == {"batch": 2, "seq": 5}
    for gates, margins in zip(recorded.gates, recorded.margins, strict=True):
        assert margins.shape == gates.shape[:-1]
        assert np.isfinite(margins).all()
        assert (margins > 0).all()


def test_layer_whose_scores_are_not_known_excuses_nothing(tmp_path: Path):
    package = write_two_layers(tmp_path / "package")
    recorded = Recorder.of(package).record(package.vectors[0].inputs)
    assert np.isinf(recorded.margins[0]).all()
    assert np.isfinite(recorded.margins[1]).all()


def test_files_are_cut_into_samples(package: OnnxPackage):
    given = inputs(batch=3)
    cut = list(cut_into_samples(package.manifest, [sample(given)]))
    assert [item.label for item in cut] == ["in.npz[0]", "in.npz[1]", "in.npz[2]"]
    np.testing.assert_array_equal(cut[2].known.inputs["x"], given["x"][2:])
    np.testing.assert_array_equal(cut[2].known.inputs["valid"], given["valid"][2:])


def test_model_that_takes_no_single_sample_gets_whole_files(package: OnnxPackage):
    limited = replace(package.manifest, dim_ranges={"batch": (2, None)})
    (whole,) = cut_into_samples(limited, [sample(inputs(batch=3))])
    assert whole.known.inputs["x"].shape[0] == 3


def test_token_that_is_nearly_tied_is_found(package: OnnxPackage):
    given = inputs(batch=6, seq=4)
    given["x"][3, 2] = 0.0  # all logits of the first layer are equal
    mined = mine(Recorder.of(package), cut_into_samples(package.manifest, [sample(given)]))
    assert (mined.searched, mined.tokens, mined.unknown) == (6, 6 * 4 * 2, ())
    first = mined.samples[0]
    assert mined.names[0] == "in.npz[3]"
    assert (first.mined[0].layer, first.mined[0].token, first.mined[0].margin) == (0, (0, 2), 0.0)
    assert first.vectors.inputs["x"].shape == (1, 4, WIDTH)


def test_every_layer_has_its_turn(package: OnnxPackage):
    given = inputs(batch=40, seq=3)
    given["x"][:20] *= 1e-4  # the first layer is nearly tied everywhere, the second one not
    mined = mine(Recorder.of(package), cut_into_samples(package.manifest, [sample(given)]))
    assert len(mined.samples) == MOST_SAMPLES
    margins = [{item.layer: item.margin for item in s.mined[::-1]} for s in mined.samples]
    best = [min(margin[layer] for margin in margins) for layer in (0, 1)]
    everything = Recorder.of(package).record(given).margins
    for layer in (0, 1):
        assert best[layer] == pytest.approx(float(everything[layer].min()), rel=1e-3, abs=1e-7)


def test_corpus_grows_by_what_is_less_clear_and_holds_nothing_twice(package: OnnxPackage):
    run = Recorder.of(package)
    clear, unclear = inputs(batch=20, seq=3), inputs(batch=20, seq=3, seed=9)
    unclear["x"][:4] *= 1e-5
    first = mine(run, cut_into_samples(package.manifest, [sample(clear)])).samples
    second = mine(run, cut_into_samples(package.manifest, [sample(unclear)])).samples
    both = grown(first, second)
    assert len(both) == MOST_SAMPLES
    assert min(item.margin for item in both) == min(item.margin for item in second)
    assert digests(grown(both, first)) == digests(both)
    assert digests(grown(first, first)) == digests(first)


def digests(samples: Sequence[CorpusSample]) -> list[str]:
    return [item.digest() for item in samples]


@dataclass(frozen=True)
class Original:
    """An original that answers as it is told to."""

    answer: Callable[[list[VectorSet]], Answers]
    name: str = "original model"

    def answers(self, package: OnnxPackage, samples: Sequence[Sample]) -> Answers:
        return self.answer([item.known for item in samples])


def longer(runs: list[VectorSet]) -> Answers:
    """Outputs that take more room than those of the function bodies."""
    found = [replace(run, outputs={"y": np.zeros(400_000)}) for run in runs]
    return Answers(tuple(found), has_gates=True)


def without_gates(runs: list[VectorSet]) -> Answers:
    """The traced program does not run on the second sample."""
    runs[1] = replace(runs[1], gates=(), margins=())
    return Answers(tuple(runs), has_gates=True, without_gates={1: "It does not run."})


def test_sample_without_gates_is_not_recorded(package: OnnxPackage):
    cut = list(cut_into_samples(package.manifest, [sample(inputs(batch=3))]))
    mined = mine(Recorder.of(package), cut)
    with pytest.raises(ExportError) as refused:
        recorded_by(Original(without_gates), package, mined)
    expected = f"original model: {mined.names[1]} cannot be recorded. It does not run."
    assert refused.value.message == expected


def test_samples_that_the_original_makes_too_large_are_counted(package: OnnxPackage):
    cut = list(cut_into_samples(package.manifest, [sample(inputs(batch=3))]))
    mined = mine(Recorder.of(package), cut)
    recorded = recorded_by(Original(longer), package, mined)
    assert (len(recorded.samples), recorded.too_large) == (1, 2)
    assert recorded.names == mined.names[:1]
