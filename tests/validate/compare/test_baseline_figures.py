from dataclasses import replace
from pathlib import Path

from moh_deploy.runtime.layer_runs import LayerRun
from moh_deploy.validate.compare.baseline_figures import parity_figures
from moh_deploy.validate.compare.parity_report import ParityReport, combined
from moh_deploy.validate.compare.parity_result import LayerParity, OutputParity
from moh_deploy.validate.reference.reference import RECORDED
from tests.kernel_library import NO_KERNELS
from tests.validate.compare.test_parity_report import METRIC

OUTPUTS = (
    OutputParity("y", "0", 1e-6, 1e-6, 1e-4, elements=6),
    OutputParity("y", "1", 2e-6, 2e-6, 1e-3, elements=8),
)
LAYERS = (
    LayerParity("a", "0", 24, 24, 0, 0, 1e-6, 1e-4, agreement=1.0),
    LayerParity("a", "1", 20, 20, 0, 2, 1e-6, 1e-4, agreement=0.9),
)
FILE = Path("baseline.json")
REPORT = ParityReport(RECORDED, 2, OUTPUTS, LAYERS, True, 0, 1, (), NO_KERNELS)


def values(report: ParityReport) -> dict[str, float]:
    return {
        f"{figure.group}: {figure.name}": figure.value for figure in parity_figures(report, FILE)
    }


def test_worst_and_sums_over_vector_sets():
    assert values(REPORT) == {
        "all: vector_sets": 2,
        "output 'y': elements": 14,
        "output 'y': max_abs_error": 2e-6,
        "layer 'a': decisions": 44,
        "layer 'a': explained_flips": 2,
        "layer 'a': agreement": 0.9,
    }


def test_outputs_that_are_judged_twice_or_behind_a_flip_do_not_count():
    forced = replace(OUTPUTS[0], forced=True)
    free = OutputParity("y", "0, behind a flip", 0.5, 0.5, None, elements=6)
    for outputs in ((forced, free, OUTPUTS[1]), (forced, *OUTPUTS)):
        assert values(replace(REPORT, outputs=outputs)) == values(REPORT)
    # An error has the grain of its tolerance.
    (error,) = (item for item in parity_figures(REPORT, FILE) if item.name == "max_abs_error")
    assert error.grain == 1e-5


def test_against_something_else_figures_are_others():
    other = replace(REPORT, reference="function bodies", vector_sets=1, layers=())
    found = values(combined([REPORT, other]))
    assert found["all: vector_sets"] == 2
    assert found["all against function bodies: vector_sets"] == 1
    assert found["output 'y' against function bodies: elements"] == 14
    assert found["output 'y': elements"] == 14


def test_layers_are_on_a_kernel_or_dense_by_choice():
    runs = (
        LayerRun("a", "kernel", "kernel", "dense"),
        LayerRun("b", "kernel", "function"),
        LayerRun("c", "dense", None),
        LayerRun("d", None, None),
    )
    found = values(replace(REPORT, layer_runs=runs))
    assert [found.get(f"layer '{path}': on_kernel") for path in "abcd"] == [1, 0, 1, None]
    assert [found[f"layer '{path}': replaced"] for path in "abcd"] == [1, 1, 1, 0]


def test_metrics_are_kept_by_which_way_is_better():
    loss = replace(METRIC, metric="perplexity", better="lower", package=12.5, labels=4000)
    found = values(replace(REPORT, accuracy=(METRIC, loss)))
    assert found["top-1 of output 'y': score"] == 0.97
    assert found["top-1 of output 'y': samples"] == 360
    assert found["perplexity of output 'y': loss"] == 12.5
    assert found["perplexity of output 'y': labels"] == 4000
