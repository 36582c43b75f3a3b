import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from moh_deploy.frontend.export_report import ExportReport
from moh_deploy.graph.layer_nodes import LayerNodes
from moh_deploy.package import KeptOperators, NearMiss, OtherRouter, TensorInfo
from moh_deploy.perf.inspect_report import InspectReport
from moh_deploy.report.document import About
from moh_deploy.report.report import si, to_json
from moh_deploy.runtime.kernel_use import KernelUse
from moh_deploy.runtime.layer_runs import LayerImpl, LayerRun
from moh_deploy.runtime.layers_text import not_layers, runs_text
from moh_deploy.runtime.run_report import RunReport
from moh_deploy.validate.compare.parity_report import ParityReport
from moh_deploy.validate.compare.parity_result import LayerParity, OutputParity
from moh_deploy.validate.compare.verify_runs import ProvenRun
from tests.handmade_package import LAYER, MANIFEST, without_layers
from tests.kernel_library import NO_KERNELS
from tests.report.shown import as_markdown, as_page, text_of, verbose_text_of

KERNELS = KernelUse(Path("/there/lib.so"), None, "avx2", "bfloat16")


def run_of(runs_as: LayerImpl | None, router_runs_as: LayerImpl | None, index: int = 0) -> LayerRun:
    return LayerRun(f"blocks.{index}.attn", runs_as, router_runs_as)


FUNCTION = run_of("function", None)


def parity(
    *outputs: OutputParity,
    layers: tuple[LayerParity, ...] = (),
    runs: tuple[LayerRun, ...] = (),
) -> ParityReport:
    return ParityReport("somewhere", 2, outputs, layers, True, 0, len(layers), runs, NO_KERNELS)


def output(name: str, vectors: str, error: float, reason: str | None = None) -> OutputParity:
    return OutputParity(name, vectors, error, error, 1e-4, reason)


def export_report(*, with_layer: bool = True) -> ExportReport:
    return ExportReport(
        package=Path("[bold]out"),
        layers=(LAYER,) if with_layer else (),
        inputs=MANIFEST.inputs,
        outputs=(TensorInfo("y", "float32", ("batch", 8)),),
        max_abs_error=1.25e-6,
        routing_agreement=1.0,
        vector_sets=3,
        runs=(
            ProvenRun(3, 1.25e-6, 1.0, 0, 2, (run_of("function", "function"),), NO_KERNELS, None),
            ProvenRun(1, 2e-3, 1.0, 2, 0, (run_of("kernel", "kernel"),), KERNELS, None),
        ),
        seconds={"tracing": 1.5, "writing": 2.0},
    )


def inspect_report(run: LayerRun = FUNCTION) -> InspectReport:
    nodes = LayerNodes("MoHAttention")
    return InspectReport(Path("p"), MANIFEST, (run,), (nodes,), (None,), "ORT", KERNELS)


def run_report(*runs: LayerRun) -> RunReport:
    return RunReport(Path("p"), Path("out.npz"), (), 1, 0, runs, KERNELS, 0.5)


def assert_both_show(line: str, **found: object) -> None:
    """Assert that export and inspect show what was found in a model, and have it in JSON."""
    inspected = replace(inspect_report(), manifest=replace(MANIFEST, **found))
    for report in (replace(export_report(), **found), inspected):
        assert line in text_of(report)
        for name, value in found.items():
            assert report.to_json()[name] == to_json(value)


def test_reports_name_the_kernels_or_the_reason_why_there_are_none():
    none = "kernels: none (switched off)"
    named = (
        "kernels: lib.so, avx2, products of float32"
        " (the package allows bfloat16, which amx_bf16 and avx512_bf16 alone have)"
    )
    assert none in text_of(parity(output("y", "0", 0.0)))
    assert parity().to_json()["kernels"] == to_json(NO_KERNELS)
    for report in (export_report(), inspect_report(), run_report()):
        assert named in text_of(report)
        assert report.to_json()["kernels"] == {
            "library": "lib.so",
            "reason": None,
            "instruction_set": "avx2",
            "compute_type": "float32",
            "asked_compute_type": "bfloat16",
            "emulated_dtype": None,
            "no_kernel_for": None,
        }


def test_bodies_that_ran_for_want_of_kernels_are_the_first_line():
    missing = KernelUse(None, "there is no library: apt install g++", None, num_bodies=2)
    line = "Function bodies ran, which compute every head and take longer: there is no library"
    report = replace(run_report(), kernels=missing)
    assert text_of(report).startswith(line)
    assert as_markdown(report, "p").splitlines()[2].startswith(f"**{line}")
    assert f"<strong>{line}" in as_page(report, About("p"))
    # Nothing to warn of: no MoH node, or the user asked for bodies.
    for quiet in (replace(missing, num_bodies=0), replace(NO_KERNELS, num_bodies=2), KERNELS):
        assert "Function bodies ran" not in text_of(replace(report, kernels=quiet))


@pytest.mark.parametrize(
    ("run", "shown"),
    [
        (run_of("kernel", "kernel"), "│ kernel "),
        (run_of("kernel", None), "│ kernel "),
        (run_of("kernel", "function"), "kernel (router: function)"),
        (run_of(None, "kernel"), "not replaced (router: kernel)"),
        (run_of(None, None), "not replaced"),
        (run_of("dense", "kernel"), "dense (router: kernel)"),
        (LayerRun("a", "kernel", "kernel", "dense"), "kernel (projections: dense)"),
    ],
)
def test_inspect_says_what_runs_attention_and_router(run: LayerRun, shown: str):
    report = inspect_report(run)
    assert shown in text_of(report)
    layers = report.to_json()["layers"]
    assert isinstance(layers, list)
    assert (layers[0]["runs_as"], layers[0]["router_runs_as"]) == (run.runs_as, run.router_runs_as)


def test_export_shows_how_each_way_of_running_agrees():
    shown = text_of(export_report())
    assert (
        "max abs error 1.25e-06, routing agreement 1; 1 MoH layer: attention as function body,"
        " router as function body; custom ops: 0 on a kernel, 2 as function body\n"
    ) in shown
    assert (
        "max abs error 0.002, routing agreement 1; 1 MoH layer: attention on a kernel, router on a"
        " kernel; custom ops: 2 on a kernel, 0 as function body\n"
    ) in shown


def test_operators_that_stay_are_named_with_what_differs():
    reason = "the token layout of conv differs from the original by 0.25 (largest value 2)"
    kept = KeptOperators("conv", ("conv2d", "gelu"), ("MoHTokenConv",), 0.25, reason)
    shown = f"conv: {reason}; not replaced by MoHTokenConv: conv2d, gelu\n"
    assert_both_show(shown, kept=(kept,))
    assert "not replaced by" not in text_of(export_report())


NEAR_MISSES = (
    NearMiss(
        tuple(f"layers.{index}" for index in range(12)),
        "softmax was followed; lost at flip",
        "models/attention.py:88",
        "models/attention.py:91",
    ),
    NearMiss(("pool",), "the scores of softmax were lost at roll", None, None),
)
NEAR_MISS_LINES = (
    "layers.0 ... layers.11 (12 layers): softmax was followed; lost at flip"
    " (models/attention.py:88); gates are applied at models/attention.py:91",
    "pool: the scores of softmax were lost at roll",
)


def test_what_looks_like_a_layer_is_told_with_where_it_was_lost():
    lines = not_layers(0, NEAR_MISSES, 0, {})
    begin = "No MoH layer was recognised, but 13 places look like one:"
    assert lines == [begin, *NEAR_MISS_LINES]
    assert not_layers(2, NEAR_MISSES[1:], 0, {})[0] == "Besides, 1 place looks like one:"
    for line in NEAR_MISS_LINES:
        assert_both_show(line, near_misses=NEAR_MISSES)


def test_a_router_that_weighs_no_attention_is_told_with_what_it_multiplies():
    experts = OtherRouter(
        tuple(f"layers.{index}.moe" for index in range(12)),
        "topk of 2 among 8",
        "models/moe.py:31",
        "linear",
        "models/moe.py:36",
    )
    line = (
        "layers.0.moe ... layers.11.moe (12 layers): topk of 2 among 8 (models/moe.py:31)"
        " multiplies what linear makes (models/moe.py:36): a router that weighs no attention,"
        " left as it is"
    )
    assert_both_show(line, other_routers=(experts,))


def test_attention_without_gates_is_counted_and_no_near_miss():
    assert not_layers(0, (), 2, {"channels": 1, "heads": 3}) == [
        "This model has no MoH layer: it is an ordinary ONNX model.",
        "2 attentions without gates: left as they are.",
        "1 attention with gates of channels, not of heads: left as it is.",
        "3 attentions whose heads are scaled by constants, none of them 0: left as they are.",
    ]
    assert not_layers(1, (), 0, {}) == []
    ordinary = replace(export_report(with_layer=False), ungated=1, other_gates={"channels": 12})
    assert "1 attention without gates" in text_of(ordinary)
    assert "12 attentions with gates of channels" in text_of(ordinary)
    assert ordinary.to_json()["ungated"] == 1
    assert ordinary.to_json()["other_gates"] == {"channels": 12}


def test_nodes_of_no_layer_are_counted():
    node_runs = {"attention": "kernel", "conv": "function", "conv#2": "kernel"}
    report = replace(inspect_report(), node_runs=node_runs)
    assert "custom ops: 2 on a kernel, 1 as function body\n" in verbose_text_of(report)
    assert report.to_json()["node_runs"] == node_runs


PROJECTED = LayerRun("a", "kernel", "kernel", "dense")
KERNEL, FALLBACK = ("kernel", "kernel"), ("function", None)
MIXED = (FALLBACK, KERNEL, KERNEL, ("kernel", "function"), KERNEL, FALLBACK)
ON_KERNEL = "attention on a kernel, router on a kernel"
IN_FUNCTIONS = "attention as function body, router in plain operators"


@pytest.mark.parametrize(
    ("runs", "text"),
    [
        ([run_of("kernel", "kernel", i) for i in range(12)], f"12 MoH layers: {ON_KERNEL}"),
        ([FUNCTION], f"1 MoH layer: {IN_FUNCTIONS}"),
        ([], "no MoH layer"),
        ([PROJECTED], f"1 MoH layer: {ON_KERNEL}, projections dense by choice"),
        (
            [run_of(*how, index) for index, how in enumerate(MIXED)],
            f"6 MoH layers: {ON_KERNEL}; except blocks.0.attn, blocks.5.attn: {IN_FUNCTIONS};"
            " except blocks.3.attn: attention on a kernel, router as function body",
        ),
    ],
)
def test_layers_that_run_alike_take_one_line_and_others_are_named(runs: list[LayerRun], text: str):
    assert runs_text(runs) == text


def test_run_shows_what_ran_the_layers():
    shown = text_of(run_report(run_of("kernel", None)))
    assert "ran in 0.5 s; 1 MoH layer: attention on a kernel, router in plain operators\n" in shown


def test_parity_shows_what_ran_each_layer():
    layers = tuple(
        LayerParity(f"blocks.{index}.attn", vectors, 24, 24, 0, 0, 1e-6, 1e-4)
        for vectors in ("0", "1")
        for index in range(2)
    )
    runs = (run_of("kernel", "kernel", 0), run_of("function", "kernel", 1))
    shown = verbose_text_of(parity(output("y", "0", 1e-6), layers=layers, runs=runs))
    assert re.search(r"│ blocks\.0\.attn │ kernel +│ 0 ", shown)
    assert "│ blocks.1.attn │ function (router: kernel) │ 0 " in shown
    assert "2 MoH layers: attention on a kernel, router on a kernel; except blocks.1.attn" in shown


TWICE = (LayerParity("blocks.0.attn", "0", 24, 24, 0, 0, 1e-6, 1e-4),) * 2
ZERO, SMALL, LARGER = output("z", "0", 0.0), output("y", "0", 1e-6), output("y", "1", 3e-6)
NO_NUMBER = output("y", "0", math.nan, "y is nan.")
MANY = [output("y", str(i), 1.0, f"reason {i}.") for i in range(25)]


@pytest.mark.parametrize(
    ("report", "shown", "hidden"),
    [
        # A module that is called twice gives two layers, and they are one row of the table.
        (
            parity(layers=TWICE, runs=(run_of("kernel", None), FUNCTION)),
            "kernel, function │",
            "NOT",
        ),
        # Without gates it still says what ran the layers.
        (parity(SMALL, runs=(FUNCTION,)), IN_FUNCTIONS, "NOT EQUAL"),
        # Of each output the worst vector set stands for all, and a failure comes first.
        (parity(SMALL, LARGER, ZERO), "EQUAL: max abs error 3e-06, routing agreement 1", "1e-06"),
        (parity(NO_NUMBER, output("y", "1", 9e-5)), "y is nan.", "9e-05"),
        (parity(*MANY), "... and 15 more", "reason 10."),
    ],
    ids=["two of a path", "no gates", "worst", "failure", "many reasons"],
)
def test_parity_shows_what_stands_for_all(report: ParityReport, shown: str, hidden: str):
    text = verbose_text_of(report)
    assert shown in text
    assert hidden not in text


def test_parity_calls_only_what_was_judged_equal():
    outputs = (
        output("judged", "0", 1e-6),
        replace(output("free", "0", 0.5), tolerance=None),
        replace(output("empty", "0", 0.0), elements=0),
        output("broken", "0", 1.0, "it is off."),
    )
    undecided = LayerParity("blocks.0.attn", "0", 0, 0, 0, 0, 0.0, 1e-4, judged_by="nothing")
    shown = text_of(parity(*outputs, layers=(undecided,)))
    for name, answer in {
        "judged": "equal",
        "free": "not judged",
        "empty": "no data",
        "broken": "differs",
        "blocks.0.attn": "no data",
    }.items():
        assert re.search(rf"│ {name} +│.*│ {answer} +│", shown), name


def test_brackets_in_names_and_shapes_are_shown_as_they_are():
    report = replace(export_report(), package=Path("[bold]out[/]"))
    assert "written to [bold]out[/]" in text_of(report)
    assert "[batch, seq, 8]" in text_of(inspect_report())


def test_export_report_has_the_promised_keys():
    content = export_report().to_json()
    assert content["package"] == "[bold]out"
    assert content["moh_layers"] == 1
    assert content["max_abs_error"] == 1.25e-6
    assert content["routing_agreement"] == 1.0
    layers = content["layers"]
    assert isinstance(layers, list)
    promised = {"path", "num_heads", "top_k", "num_shared_heads", "router", "replaced", "reason"}
    assert promised <= layers[0].keys()


def test_model_without_layers_is_said_to_have_none():
    assert "no MoH layer" in text_of(export_report(with_layer=False))
    assert export_report(with_layer=False).to_json()["moh_layers"] == 0
    ordinary = InspectReport(Path("p"), without_layers(), (), (), (), "ORT", NO_KERNELS)
    assert "no MoH layer" in text_of(ordinary)


def test_reason_that_layers_share_is_shown_once():
    layers = tuple(replace(LAYER, path=f"blocks.{i}.attn") for i in range(2))
    shown = text_of(replace(export_report(), layers=layers))
    assert "blocks.0.attn, blocks.1.attn: router: no known form" in shown


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 "), (999, "999 "), (1500, "1.5 k"), (2 * 10**12, "2 T")]
)
def test_large_counts_get_a_prefix(value: int, text: str):
    assert si(value) == text


def test_export_tells_limits_and_dimensions_without_a_name():
    report = replace(
        export_report(),
        dim_ranges={"seq": (1, 64), "past": (1, None)},
        limits={"seq": "the original model does not take seq=65: no such position"},
        unnamed={"x_dim_1": "x:1"},
    )
    said = " ".join(text_of(report).split())
    assert "Dimension 'seq' may be 1 to 64: the original model does not take seq=65" in said
    assert "'past'" not in said
    assert "'x_dim_1' is x, axis 1; `--dynamic x:1=NAME` names it." in said
