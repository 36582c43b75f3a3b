"""What `optimize` says: the verdict, why the winner won, how fast and how exact each was."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from moh_deploy.errors import ValidationError
from moh_deploy.perf.optimize_report import OptimizeReport, ProofRecord, Speedup
from moh_deploy.perf.timing import Ratio
from moh_deploy.perf.tune.quality import Quality
from moh_deploy.perf.tune.report import RuntimePrecision, SearchReport, Timed, Tried
from moh_deploy.report.document import About
from moh_deploy.system.bounded_json import to_json_text
from moh_deploy.validate.compare.checks import Flips
from moh_deploy.validate.compare.parity_report import combined
from tests.kernel_library import NO_KERNELS
from tests.report.shown import as_markdown, as_page, text_of
from tests.validate.compare.test_parity_report import METRIC, OUTPUT, UNKNOWN
from tests.validate.compare.test_parity_report import REPORT as PARITY

SIZES = {"batch": 64}
INT8, FLOAT32 = (RuntimePrecision("onnxruntime", name) for name in ("int8", "float32"))
WON = Timed(FLOAT32.name, 8.0, 10.0, Ratio(0.8, 0.75, 0.85))
GOOD = Quality(360, Flips(283, 17280), (METRIC,), ())
SEARCH = SearchReport(
    package=Path("build/fast"),
    output=Path("build/fast"),
    within=("top-1 >= 0.98 * reference",),
    runtime="onnxruntime",
    precision="int8",
    machine="a machine",
    clock="CPU",
    threads=1,
    sizes=(SIZES,),
    tried=(
        Tried(FLOAT32, "too slow", "1.25x the time", WON.inverse(INT8.name), GOOD),
        Tried(INT8, "chosen", None, WON, GOOD),
    ),
    kernels=NO_KERNELS,
)
ORIGINAL = Speedup("the original model", "random", SIZES, 2.0, 6.0, 3.0, 2.9, 3.1)
REPORT = OptimizeReport(
    model="model.pt",
    speedups=(ORIGINAL, Speedup("the float32 package", "random", SIZES, 2.0, 2.5, 1.25, 1.2, 1.3)),
    proofs=(
        ProofRecord("float32, as exported", "original model model.pt", 6, 5e-6, 1.0, (METRIC,)),
        ProofRecord("int8, as written", "recorded vectors", 3, 0.02, None, ()),
    ),
    search=SEARCH,
    bench_command="moh-deploy bench build/fast --size batch=64",
)


def test_text_says_what_won_why_and_how_to_measure_it():
    text = text_of(REPORT)
    assert (
        "FASTEST GOOD PACKAGE: int8 in ONNX Runtime, 3.000x as fast as the original model (95 %:"
        " 2.900x to 3.100x); written to build/fast"
    ) in text
    assert (
        "int8 in ONNX Runtime won: it took 0.800x the time of float32 in ONNX Runtime (95 %: 0.750x"
        " to 0.850x); every condition holds, and 283 of 17280 tokens choose other heads"
    ) in text
    assert "asked for: top-1 >= 0.98 * reference" in text
    assert "to measure: moh-deploy bench build/fast --size batch=64" in text


def test_page_has_the_verdict_each_candidate_and_both_proofs():
    page = as_page(REPORT, About("model.pt", "moh-deploy optimize model.pt"))
    assert "<title>FASTEST GOOD PACKAGE: model.pt (moh-deploy optimize)</title>" in page
    for text in ("1.25x the time", "chosen", "original model model.pt", "recorded vectors"):
        assert text in page
    assert "3 times as fast as the original model" in page  # what is drawn, in words


def test_package_that_nothing_beats_is_kept():
    kept = Tried(FLOAT32, "chosen", None, None, GOOD)
    lost = Tried(INT8, "too slow", "1.1x the time", WON)
    report = replace(REPORT, search=replace(SEARCH, precision="float32", tried=(kept, lost)))
    assert "float32 in ONNX Runtime is kept: none of 1 others is faster and good" in text_of(report)


def test_milliseconds_of_candidates_divide_as_their_ratios_do():
    """Measured at other clocks: int4 beside float32, and float16 beside int8, which has won."""
    int4, float16 = (RuntimePrecision("onnxruntime", name) for name in ("int4", "float16"))
    tried = (
        Tried(int4, "too slow", "slow", Timed(FLOAT32.name, 3.0, 2.5, Ratio(1.2, 1.1, 1.3))),
        *SEARCH.tried,
        Tried(float16, "too slow", "slow", Timed(INT8.name, 40.0, 20.0, Ratio(2.0, 1.9, 2.1))),
    )
    assert _milliseconds(tried) == {"int4": "12", "float32": "10", "int8": "8", "float16": "16"}
    kept = Tried(FLOAT32, "chosen", None, None, GOOD)
    beside = Tried(INT8, "too slow", "slow", Timed(FLOAT32.name, 5.0, 4.0, Ratio(1.25, 1.2, 1.3)))
    assert _milliseconds((kept, beside)) == {"float32": "4", "int8": "5"}
    assert _milliseconds((kept,)) == {"float32": "-"}


def _milliseconds(tried: tuple[Tried, ...]) -> dict[str, str]:
    """Read the column `ms` of the table of candidates."""
    rows = as_markdown(replace(SEARCH, tried=tried), "m").splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {row[0].split()[0]: row[2] for row in cells if len(row) > 2 and "in ONNX" in row[0]}


FEW = replace(UNKNOWN, changed=())


def test_proof_needs_equal_outputs_and_no_metric_that_cannot_be_told():
    few = combined([replace(PARITY, accuracy=(FEW,))] * 2)
    assert ProofRecord.of(few, "float32").accuracy == (FEW, FEW)
    lost = replace(FEW, verdict="failed", reason="it lost too much")
    off = replace(OUTPUT, reason="output 'y' differs")
    for wrong, reason in (({"accuracy": (FEW, lost)}, "lost"), ({"outputs": (off,)}, "differs")):
        with pytest.raises(ValidationError, match=reason):
            ProofRecord.of(replace(PARITY, **wrong), "float32")


def test_few_samples_are_no_condition_that_holds():
    kept = Tried(FLOAT32, "chosen", None, None, replace(GOOD, accuracy=(FEW,)))
    text = text_of(replace(REPORT, search=replace(SEARCH, precision="float32", tried=(kept,))))
    assert "every condition holds" not in text
    assert "every sample scores as in the float32 package" in text
    assert f"samples are too few to judge other precisions: {FEW.reason}" in text


def test_json_has_the_search_and_the_speedups():
    content = json.loads(to_json_text(REPORT.to_json()))
    assert content["output"] == "build/fast"
    assert [row["way"]["name"] for row in content["tried"]] == [FLOAT32.name, INT8.name]
    assert content["speedups"][0]["times"] == 3.0
    assert content["proofs"][0]["accuracy"][0]["metric"] == METRIC.metric
