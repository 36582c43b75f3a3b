from dataclasses import replace

import pytest

from moh_deploy.perf.bench.candidate import RoutingOverhead
from moh_deploy.perf.bench.findings import findings
from moh_deploy.perf.bench.measured import Agreement, LayerWork, Measured, PackageWork
from moh_deploy.perf.timing import Ratio, TimeDifference
from tests.report.samples import bench_report

WHERE = "build/model on recorded inputs at batch=4"
LAYER = LayerWork("blocks.0.attn", "sparse", "kernel", 12, 24, 0.5, {"sparse": 0.71}, "sparse")


def of_layers(*layers: LayerWork) -> list[str]:
    return list(findings([], [PackageWork("build/model", "recorded", {"batch": 4}, layers)], []))


def against(ratio: Ratio) -> list[Measured]:
    first, dense = bench_report().results
    return [replace(first, ratios={"dense": ratio}), dense]


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (
            {},
            "runs sparse, which is predicted to be faster than dense up to 71.0 % open gates;"
            " 50.0 % are open",
        ),
        (
            {"active_share": 0.9, "predicted_fastest": "dense"},
            "runs sparse, which is predicted to be faster than dense only up to 71.0 % open gates;"
            " 90.0 % are open: dense is predicted to be faster here",
        ),
        (
            {"break_even": {"sparse": None}, "predicted_fastest": "dense"},
            "runs sparse, which is predicted to be faster than dense at no share of open gates;"
            " 50.0 % are open: dense is predicted to be faster here",
        ),
        (
            {"choice": "dense", "runs_as": "dense"},
            "runs dense; sparse is predicted to be faster than dense up to 71.0 % open gates;"
            " 50.0 % are open: sparse is predicted to be faster here",
        ),
        (
            {
                "choice": "projected",
                "break_even": {"sparse": 1.0, "projected": 0.6},
                "predicted_fastest": "projected",
            },
            "runs projected, which is predicted to be faster than sparse up to 60.0 % open gates;"
            " 50.0 % are open",
        ),
        (
            {
                "choice": "projected",
                "break_even": {"sparse": 1.0, "projected": 0.53},
                "predicted_fastest": "sparse",
            },
            "runs projected, which is predicted to be faster than sparse up to 53.0 % open gates;"
            " 50.0 % are open, and it is faster by too little to count: sparse is plainer",
        ),
        ({"runs_as": "function"}, "runs as function bodies, which compute every head"),
    ],
)
def test_layer_says_up_to_where_its_choice_pays(changed: dict[str, object], sentence: str):
    assert of_layers(replace(LAYER, **changed)) == [f"{WHERE}: layer blocks.0.attn {sentence}"]


def test_layers_of_which_the_same_is_said_are_one_sentence():
    more = [replace(LAYER, path=f"blocks.{i}.attn", active_share=0.5 + i / 100) for i in range(3)]
    other = replace(LAYER, path="last", break_even={"sparse": 0.4})
    together, alone = of_layers(*more, other)
    assert together == (
        f"{WHERE}: 3 layers (blocks.0.attn ... blocks.2.attn) run sparse, which is predicted to be"
        " faster than dense up to 71.0 % open gates; 50.0 % to 52.0 % are open"
    )
    assert "layer last runs sparse" in alone


def test_layer_without_prediction_or_replacement_says_nothing():
    assert of_layers(replace(LAYER, break_even={}, predicted_fastest=None)) == []
    assert of_layers(replace(LAYER, choice=None, runs_as=None)) == []


@pytest.mark.parametrize(
    ("ratio", "sentence"),
    [
        (Ratio(0.5, 0.4, 0.8), "skipping heads pays, 2.000x as fast as dense (1.250 to 2.500)"),
        (
            Ratio(1.25, 1.1, 1.4),
            "skipping heads DOES NOT PAY, dense is 1.250x as fast (1.100 to 1.400);"
            " `moh-deploy tune` chooses by measuring",
        ),
        (Ratio(1.0, 0.9, 1.1), "skipping heads shows no difference to dense"),
    ],
)
def test_dense_baseline_says_whether_skipping_pays(ratio: Ratio, sentence: str):
    assert list(findings(against(ratio), [], [])) == [f"{WHERE}: {sentence}"]


def test_what_computes_something_else_is_named():
    first, dense = against(Ratio(0.5, 0.4, 0.8))
    equal = replace(dense, agreement=Agreement(3e-7, 1e-4, None))
    wrong = replace(equal, contestant="eager", agreement=Agreement(2.0, 1e-4, "output 'y' is off."))
    same, differs, _ = list(findings([first, equal, wrong], [], []))
    assert same == f"outputs of {WHERE}: those of dense agree, the largest difference is 3e-07"
    assert differs == (
        f"outputs of {WHERE}: those of eager differ, so its speed is that of another computation:"
        " output 'y' is off"
    )


def test_router_overhead_is_said_or_why_it_is_not_known():
    wall, cpu = TimeDifference(0.2, 0.1, 0.3), TimeDifference(0.1, -0.1, 0.3)
    found = RoutingOverhead("build/model", None, "recorded", {"batch": 4}, wall, cpu, 0.125, None)
    missing = replace(found, wall_ms=None, cpu_ms=None, share=None, reason="no gates are read")
    of_one = replace(found, layer="blocks.1.attn")
    (sentence,) = findings([], [], [of_one])
    assert sentence.startswith(f"{WHERE}: router overhead of blocks.1.attn (dynamic minus")
    assert list(findings([], [], [found, missing])) == [
        f"{WHERE}: router overhead (dynamic minus fixed routing) 0.2 ms (0.1 to 0.3) a run, 12.5 %"
        " of p50; CPU time 0.1 ms (-0.1 to 0.3, no difference shown)",
        f"{WHERE}: router overhead is not measurable, no gates are read",
    ]
