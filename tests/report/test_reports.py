from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from moh_deploy.backends.runner import KernelUse, LayerImpl
from moh_deploy.package import TensorInfo
from moh_deploy.report.export import ExportReport
from moh_deploy.report.inspect import InspectedLayer, InspectReport
from moh_deploy.report.run import RunReport
from moh_deploy.report.tables import si
from moh_deploy.validate.fresh_process import ProvenRun
from moh_deploy.validate.parity_report import LayerParity, OutputParity, ParityReport
from tests.handmade_package import LAYER, MANIFEST, without_layers
from tests.kernel_library import NO_KERNELS

KERNELS = KernelUse(Path("/there/lib.so"), None, "avx2", "bfloat16")


def text_of(content: RenderableType) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(content)
    return capture.get()


def parity(*outputs: OutputParity, layers: tuple[LayerParity, ...] = ()) -> ParityReport:
    return ParityReport("somewhere", 2, outputs, layers, True, 0, len(layers), NO_KERNELS)


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
        runs=(ProvenRun(1.25e-6, 1.0, 0, 2, NO_KERNELS), ProvenRun(2e-3, 1.0, 2, 0, KERNELS)),
        seconds={"tracing": 1.5, "writing": 2.0},
    )


def inspect_report(*layers: InspectedLayer) -> InspectReport:
    return InspectReport(Path("p"), MANIFEST, layers, "ORT", KERNELS)


def test_reports_name_the_kernels_or_the_reason_why_there_are_none():
    none = "kernels: none (switched off)"
    named = (
        "kernels: /there/lib.so, avx2, products of float32"
        " (the package allows bfloat16, which avx512_bf16 alone has)"
    )
    assert none in text_of(parity(output("y", "0", 0.0)))
    assert parity().to_json()["kernels"] == NO_KERNELS.to_json()
    run = RunReport(Path("p"), Path("out.npz"), (), 1, 0, KERNELS, 0.5)
    for report in (export_report(), inspect_report(), run):
        assert named in text_of(report)
        assert report.to_json()["kernels"] == {
            "library": "/there/lib.so",
            "reason": None,
            "instruction_set": "avx2",
            "compute_type": "float32",
            "asked_compute_type": "bfloat16",
        }


def test_kernels_come_back_from_json():
    for use in (KERNELS, NO_KERNELS):
        assert KernelUse.from_json(use.to_json()) == use


@pytest.mark.parametrize(
    ("runs_as", "router_runs_as", "shown"),
    [
        ("kernel", "kernel", "│ kernel "),
        ("kernel", None, "│ kernel "),
        ("kernel", "function", "kernel (router: function)"),
        (None, None, "not replaced"),
    ],
)
def test_inspect_says_what_runs_attention_and_router(
    runs_as: LayerImpl | None, router_runs_as: LayerImpl | None, shown: str
):
    report = inspect_report(InspectedLayer(LAYER, runs_as, router_runs_as))
    assert shown in text_of(report)
    layers = report.to_json()["layers"]
    assert isinstance(layers, list)
    assert (layers[0]["runs_as"], layers[0]["router_runs_as"]) == (runs_as, router_runs_as)


def test_export_shows_how_each_way_of_running_agrees():
    shown = text_of(export_report())
    assert "max abs error 1.25e-06, routing agreement 1; MoH nodes: 0 on a kernel, 2 as" in shown
    assert "max abs error 0.002, routing agreement 1; MoH nodes: 2 on a kernel, 0 as" in shown


def test_parity_shows_the_worst_vector_set_of_each_output():
    shown = text_of(parity(output("y", "0", 1e-6), output("y", "1", 3e-6), output("z", "0", 0.0)))
    assert "3e-06" in shown
    assert "1e-06" not in shown
    assert "EQUAL: max abs error 3e-06, routing agreement 1" in shown


def test_parity_shows_a_failure_before_a_larger_error_that_is_allowed():
    shown = text_of(parity(output("y", "0", math.nan, "y is nan."), output("y", "1", 9e-5)))
    assert "NOT EQUAL" in shown
    assert "y is nan." in shown
    assert "9e-05" not in shown


def test_parity_cuts_a_long_list_of_reasons():
    shown = text_of(parity(*(output("y", str(i), 1.0, f"reason {i}.") for i in range(25))))
    assert "reason 9." in shown
    assert "reason 10." not in shown
    assert "... and 15 more" in shown


def test_brackets_in_names_and_shapes_are_shown_as_they_are():
    report = replace(export_report(), package=Path("[bold]out[/]"))
    assert "written to [bold]out[/]" in text_of(report)
    assert "[batch, seq, 8]" in text_of(inspect_report(InspectedLayer(LAYER, "function", None)))


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
    ordinary = InspectReport(Path("p"), without_layers(), (), "ORT", NO_KERNELS)
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
