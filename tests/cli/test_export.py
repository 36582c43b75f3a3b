"""The export command hands its options on, unread. A stand-in for the pipeline spares torch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest

from moh_deploy.config.options import ExportOptions
from moh_deploy.errors import CheckpointError
from moh_deploy.frontend.export_report import ExportReport
from moh_deploy.system.progress import Progress
from moh_deploy.validate.compare.fresh_process import ProvenRun
from tests.cli.run_cli import Cli
from tests.handmade_package import LAYER, MANIFEST
from tests.kernel_library import NO_KERNELS


@dataclass
class Pipeline:
    """Records what `export` is called with; `act` runs inside of it."""

    calls: list[ExportOptions] = field(default_factory=list)
    act: Callable[[], object] = lambda: None

    def export(self, options: ExportOptions, *, progress: Progress) -> ExportReport:
        self.calls.append(options)
        with progress.step("tracing"):
            self.act()
        return ExportReport(
            package=options.output,
            layers=(LAYER,),
            inputs=MANIFEST.inputs,
            outputs=MANIFEST.outputs,
            max_abs_error=1e-6,
            routing_agreement=1.0,
            vector_sets=2,
            runs=(ProvenRun(2, 1e-6, 1.0, 0, 1, (), NO_KERNELS, None),),
        )


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    pipeline = Pipeline()
    module = ModuleType("moh_deploy.frontend.export_package")
    module.export_package = pipeline.export  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "moh_deploy.frontend.export_package", module)
    return pipeline


def test_every_option_reaches_the_pipeline(cli: Cli, pipeline: Pipeline):
    arguments = (
        "model.pt -o out --config c.yaml --set dims.batch=3 --set model.state_key=ema"
        " --factory net:build --code-dir a --code-dir b --state-key model --trust-pickle"
        " --inputs in.npz --dynamic x:0=batch,2=h --dynamic y:0=batch"
        " --input x:[batch=2,3]:float32 --output-name logits --output-name aux --opset 21"
        " --compute-type bfloat16 --require-layers 12"
    )
    assert cli("export", *arguments.split()).exit_code == 0
    assert pipeline.calls == [
        ExportOptions(
            model=Path("model.pt"),
            output=Path("out"),
            config=Path("c.yaml"),
            overrides=("dims.batch=3", "model.state_key=ema"),
            factory="net:build",
            code_dirs=(Path("a"), Path("b")),
            state_key="model",
            trust_pickle=True,
            inputs=Path("in.npz"),
            dynamic=("x:0=batch,2=h", "y:0=batch"),
            input_specs=("x:[batch=2,3]:float32",),
            output_names=("logits", "aux"),
            opset=21,
            compute_type="bfloat16",
            require_layers=12,
        )
    ]


def test_all_layers_may_be_required(cli: Cli, pipeline: Pipeline):
    cli("export", "model.pt", "-o", "out", "--require-layers", "all")
    assert [options.require_layers for options in pipeline.calls] == ["all"]


def test_options_left_out_have_the_defaults_of_the_function(cli: Cli, pipeline: Pipeline):
    cli("export", "model.pt", "--output", "out")
    assert pipeline.calls == [ExportOptions(Path("model.pt"), Path("out"))]


def test_report_is_shown(cli: Cli, pipeline: Pipeline):
    shown = cli("export", "model.pt", "-o", "out")
    assert "1 MoH layer" in shown.out
    assert "EQUAL to the original on 2 runs: max abs error 1e-06" in shown.out


def test_verbose_says_where_time_went(cli: Cli, pipeline: Pipeline):
    quiet = cli("export", "model.pt", "-o", "out", "--json")
    verbose = cli("export", "model.pt", "-o", "out", "--json", "--verbose")
    assert quiet.err == ""
    assert [line.split()[-1] for line in verbose.err.splitlines()] == ["tracing", "steps"]
    assert verbose.json == quiet.json


def test_verbose_says_it_of_an_export_that_fails(cli: Cli, pipeline: Pipeline):
    def fail() -> None:
        raise CheckpointError("model.pt does not exist.", hint="Look for it.")

    pipeline.act = fail
    assert "%  tracing\n" in cli("export", "model.pt", "-o", "out", "--verbose").err


def test_what_the_users_code_prints_does_not_disturb_the_json(cli: Cli, pipeline: Pipeline):
    pipeline.act = lambda: print("building the network")
    shown = cli("export", "model.pt", "-o", "out", "--json")
    assert shown.json["moh_layers"] == 1
    assert shown.err == "building the network\n"


def test_error_of_the_pipeline_is_one_line_and_its_exit_code(cli: Cli, pipeline: Pipeline):
    def fail() -> None:
        raise CheckpointError("model.pt does not exist.", hint="Look for it.")

    pipeline.act = fail
    failed = cli("export", "model.pt", "-o", "out", "--json")
    assert failed.exit_code == 3
    assert failed.err == "error: model.pt does not exist.\nhint: Look for it.\n"
    assert failed.json == {
        "error": {
            "type": "CheckpointError",
            "message": "model.pt does not exist.",
            "hint": "Look for it.",
            "exit_code": 3,
        }
    }


def test_interrupt_ends_with_130(cli: Cli, pipeline: Pipeline):
    def interrupt() -> None:
        raise KeyboardInterrupt

    pipeline.act = interrupt
    stopped = cli("export", "model.pt", "-o", "out")
    assert stopped.exit_code == 130
    assert stopped.err.strip() == "interrupted"


def test_installation_without_pytorch_says_so(cli: Cli, pipeline: Pipeline):
    def miss() -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    pipeline.act = miss
    failed = cli("export", "model.pt", "-o", "out")
    assert failed.exit_code == 6
    assert failed.err.startswith("error: PyTorch is not installed, and this command loads")


def test_bug_keeps_its_traceback(cli: Cli, pipeline: Pipeline):
    pipeline.act = lambda: [][0]
    failed = cli("export", "model.pt", "-o", "out")
    assert failed.exit_code == 70
    assert "IndexError: list index out of range" in failed.err
