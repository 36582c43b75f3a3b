"""The export command hands its options on, unread. A stand-in for the pipeline spares torch."""

import importlib
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from moh_deploy.config.options import ExportOptions
from moh_deploy.errors import CheckpointError, ExportError
from moh_deploy.frontend.export_report import ExportReport
from moh_deploy.native import kernel_library
from moh_deploy.system.npz import read_npz, write_npz
from moh_deploy.system.progress import Progress
from moh_deploy.validate.compare.verify_runs import ProvenRun
from tests import small_moh
from tests.cli.run_cli import Cli, run_python
from tests.handmade_package import LAYER, MANIFEST, write_package
from tests.kernel_library import NO_KERNELS
from tests.nightly import nightly, one_in


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
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """The stand-in, in a directory with the files that the commands below name."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        Path(name).mkdir()
    for name in ("model.pt", "in.npz"):
        Path(name).touch()
    Path("c.yaml").write_text("inputs: [{name: x, shape: [batch]}]\ndims: {batch: 2}\n")
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


def test_verbose_prints_the_graph_of_a_model_that_cannot_be_traced(cli: Cli, pipeline: Pipeline):
    cause = RuntimeError("Could not guard on data-dependent expression")
    cause.partial_fx_graph = "def forward(self, x):"

    def fail() -> None:
        raise ExportError("Python reads a value of a tensor.") from cause

    pipeline.act = fail
    graph = "def forward(self, x):\n"
    assert cli("export", "model.pt", "-o", "out", "--verbose").err.startswith(graph)
    assert graph not in cli("export", "model.pt", "-o", "out").err


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


@pytest.mark.parametrize(
    "call",
    [
        f"main(['export', '{__file__}', '-o', 'out'])",
        f"main(['verify', 'package', '--against', '{__file__}'])",
    ],
)
def test_installation_without_the_extra_names_it(call: str):
    hide = "import sys; sys.modules.update(torch=None, safetensors=None)"
    ended = run_python("-c", f"{hide}; from moh_deploy.cli import main; {call}")
    assert ended.exit_code == 6
    assert ended.err.startswith("error: not installed: torch, safetensors; exporting a model,")
    assert "hint: pip install 'moh-deploy[export]'." in ended.err
    assert "Traceback" not in ended.err


# `-X importtime` lists what is imported on stderr.
PYTHON_FUNCTIONS = """
import sys, moh_deploy
from moh_deploy.errors import MoHDeployError
for call in (lambda *a: moh_deploy.export(*a, "out"), moh_deploy.load_original):
    for model in sys.argv[1:]:
        try:
            call(model)
        except MoHDeployError as error:
            print(error.exit_code, error.message)
"""


def test_functions_refuse_a_missing_file_before_torch_is_imported():
    ended = run_python("-X", "importtime", "-c", PYTHON_FUNCTIONS, "absent.pt")
    assert ended.out.splitlines() == ["3 absent.pt: no such file or directory."] * 2
    imported = {line.rpartition("|")[2].strip() for line in ended.err.splitlines()}
    assert "moh_deploy.package.before_export" in imported
    assert "torch" not in imported


def test_functions_without_the_extra_raise_what_the_command_says():
    hide = "import sys; sys.modules.update(torch=None)"
    ended = run_python("-c", f"{hide}; {PYTHON_FUNCTIONS}", __file__)
    assert ended.out.count("6 not installed: torch; exporting a model,") == 2


@pytest.mark.parametrize("missing", ["fcntl", "resource"])
def test_a_system_without_posix_is_named(cli: Cli, pipeline: Pipeline, missing: str):
    def miss() -> None:
        raise ModuleNotFoundError(f"No module named '{missing}'", name=missing)

    pipeline.act = miss
    failed = cli("export", "model.pt", "-o", "out")
    assert failed.exit_code == 6
    assert failed.err.startswith(
        "error: moh-deploy runs on Linux, and most of it on macOS; this is"
    )


WITHOUT_TORCH = """
import sys
from moh_deploy.cli import main
from moh_deploy.errors import MoHDeployError
for line in sys.argv[1:]:
    try:
        main(line.split(), standalone_mode=False)
    except MoHDeployError as error:
        print(error.exit_code, error.message)
    if "torch" in sys.modules:
        sys.exit(f"{line} imports torch")
"""


def test_what_needs_no_model_is_refused_before_torch_is_imported(tmp_path: Path):
    package, there = write_package(tmp_path / "p").root, tmp_path / "m.pt"
    there.touch()
    absent = tmp_path / "absent.pt"
    ended = run_python(
        *("-c", WITHOUT_TORCH),
        f"export {absent} -o out",
        f"export {there} -o out --opset 12",
        f"export {there} -o out --require-layers few",
        f"export {there} -o {there}",
        f"export {there} -o out --inputs {absent}",
        f"bench {package} --checkpoint {absent} --baseline eager",
        f"generate {package} --tokens 1 --against {absent}",
        f"verify {package} --against {absent} --trust-pickle",
    )
    assert (ended.exit_code, ended.err) == (0, "")
    no_model = f"3 {absent}: no such file or directory."
    assert ended.out.splitlines() == [
        no_model,
        "2 opset is 12, expected 18 or later.",
        "2 require_layers is 'few', expected a number from 0 on, or all.",
        f"5 {there} is a file, expected a directory to write the package to.",
        f"2 {absent} does not exist.",
        no_model,
        no_model,
        # Not that --trust-pickle would be of no use.
        f"2 against is {absent}, which is not found.",
    ]


# The command on real files: one model in each form that a checkpoint may have.


INPUT = ("--input", "x:[batch=2,seq=5,8]:float32")


@pytest.fixture
def code_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with the user's module `user_moh`; whatever is imported from it is forgotten."""
    folder = tmp_path / "code"
    folder.mkdir()
    shutil.copy(small_moh.__file__, folder / "user_moh.py")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield folder
    sys.modules.pop("user_moh", None)


def user_module(code_dir: Path) -> ModuleType:
    sys.path.insert(0, str(code_dir))
    try:
        return importlib.import_module("user_moh")
    finally:
        sys.path.remove(str(code_dir))
        sys.modules.pop("user_moh")


def module(model: nn.Module, path: Path) -> None:
    user_moh = ModuleType("user_moh")
    user_moh.SmallMoH = type(model)  # type: ignore[attr-defined]
    sys.modules["user_moh"] = user_moh  # pickle checks that the name leads back to the class
    torch.save(model.train(), path)
    del sys.modules["user_moh"]


def state_dict(model: nn.Module, path: Path) -> None:
    torch.save(model.state_dict(), path)


def training_checkpoint(model: nn.Module, path: Path) -> None:
    weights = {f"module.{name}": value for name, value in model.state_dict().items()}
    torch.save({"epoch": 3, "model": weights, "optimizer": {"lr": 0.1}}, path)


def safetensors(model: nn.Module, path: Path) -> None:
    save_file(model.state_dict(), path)


def exported_program(model: nn.Module, path: Path) -> None:
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("seq")}
    x = torch.zeros(2, 5, 8)
    torch.export.save(torch.export.export(model.eval(), (x,), dynamic_shapes=(dims,)), path)


FACTORY = ("--factory", "user_moh:build", *INPUT)

FORMS: dict[str, tuple[Callable[[nn.Module, Path], None], str, tuple[str, ...]]] = {
    "module": (module, "model.pt", ("--trust-pickle", *INPUT)),
    "state_dict": (state_dict, "model.pt", FACTORY),
    "training_checkpoint": (training_checkpoint, "last.pt", FACTORY),
    "safetensors": (safetensors, "model.safetensors", FACTORY),
    "pt2": (exported_program, "model.pt2", ()),
}


@nightly
@pytest.mark.parametrize("form", one_in(5, FORMS))
def test_checkpoint_of_every_form_becomes_an_equal_package(
    cli: Cli, tmp_path: Path, code_dir: Path, form: str
):
    save, name, options = FORMS[form]
    model = user_module(code_dir).build()
    nn.init.constant_(model.out.bias, 0.25)  # what a factory alone would not give
    save(model, tmp_path / name)
    package = tmp_path / "package"
    if form != "pt2":
        options = (*options, "--code-dir", str(code_dir))
    exported = cli("export", tmp_path / name, "--output", package, "--json", *options)
    assert exported.exit_code == 0, exported.err
    (layer,) = exported.json["layers"]
    assert (layer["router"], layer["replaced"], layer["num_heads"]) == ("two_stage", True, 4)
    projections = [layer["query_projection"], layer["output_projection"]]
    projected = [name for name in projections if name] if layer["choice"] == "projected" else []
    assert layer["choice"] in ("sparse", "projected")
    assert exported.json["routing_agreement"] == 1.0
    nodes = [(run["kernel_nodes"], run["function_nodes"]) for run in exported.json["runs"]]
    count = 2 + len(projected)
    assert nodes == ([(0, count), (count, 0)] if kernel_library() else [(0, count)])
    ways = ["function", "kernel"] if kernel_library() else ["function"]
    assert [run["layer_runs"] for run in exported.json["runs"]] == [
        [
            {
                "path": layer["path"],
                "runs_as": way,
                "router_runs_as": way,
                "projections_run_as": _projections_run_as(layer, way),
                "by_size": None,
            }
        ]
        for way in ways
    ]
    inspected = cli("inspect", package, "--json").json["layers"][0]
    impl = ways[-1]
    assert (inspected["runs_as"], inspected["router_runs_as"]) == (impl, impl)

    x = torch.randn(4, 7, 8, generator=torch.Generator().manual_seed(0))
    write_npz(tmp_path / "in.npz", {"x": x.numpy()})
    ran = cli("run", package, "--inputs", tmp_path / "in.npz", "--outputs", tmp_path / "out.npz")
    assert ran.exit_code == 0, ran.err
    (output,) = read_npz(tmp_path / "out.npz", error=ValueError).values()
    with torch.no_grad():
        np.testing.assert_allclose(output, model.eval()(x).numpy(), atol=1e-5)


def _projections_run_as(layer: dict[str, Any], way: str) -> str | None:
    if not (layer["query_projection"] or layer["output_projection"]):
        return None
    return way if layer["choice"] == "projected" else "dense"


def test_pickle_that_is_not_trusted_leaves_nothing_behind(cli: Cli, tmp_path: Path, code_dir: Path):
    module(user_module(code_dir).build(), tmp_path / "model.pt")
    refused = cli(
        "export", tmp_path / "model.pt", "-o", tmp_path / "package", "--code-dir", code_dir, *INPUT
    )
    assert refused.exit_code == 3
    assert "--trust-pickle" in refused.err
    assert "user_moh" not in sys.modules
    assert not (tmp_path / "package").exists()
