"""The optimize command hands its options on, writes its page, and says where unfinished work is."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest

from moh_deploy.errors import ValidationError
from moh_deploy.perf.optimize_report import OptimizeReport
from tests.cli.run_cli import Cli
from tests.handmade_package import write_package
from tests.perf.test_optimize_report import REPORT


@dataclass
class Job:
    """Stands for the function; `act` runs inside of it."""

    calls: list[dict[str, object]] = field(default_factory=list)
    act: Callable[[], object] = lambda: None

    def optimize(self, progress: object, **given: object) -> OptimizeReport:
        self.calls.append(given)
        self.act()
        return REPORT


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Job:
    monkeypatch.chdir(tmp_path)
    found, module = Job(), ModuleType("moh_deploy.api.optimize")
    module.optimize, module.PHASES = found.optimize, {}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "moh_deploy.api.optimize", module)
    return found


def test_every_option_reaches_the_function(cli: Cli, job: Job):
    arguments = (
        "model.pt -o build/fast --inputs val.npz --inputs more --labels y.npy --within parity"
        " --example in.npz --calibration cal.npz --weight 1 --weight 200 --runtime openvino"
        " --threads 2 --min-time 1s --one-choice --config c.yaml --set dims.batch=3"
        " --factory net:build --code-dir code --state-key ema --trust-pickle --trust-code"
        " --dtype float32 --dynamic x:0=batch --input x:[batch=2,3]:float32 --output-name y"
        " --opset 21 --compute-type bfloat16 --cache in-place --require-layers all"
        " --valid-tokens mask --label-output y --ignore-label -1 --shift-labels --batch-size 4"
        " --task text-generation"
    )
    assert cli("optimize", *arguments.split()).exit_code == 0
    assert job.calls == [
        {
            "model": Path("model.pt"),
            "output": Path("build/fast"),
            "inputs": (Path("val.npz"), Path("more")),
            "labels": "y.npy",
            "within": ("parity",),
            "example": Path("in.npz"),
            "calibration": (Path("cal.npz"),),
            "weights": (1.0, 200.0),
            "runtime": "openvino",
            "threads": 2,
            "min_time": 1.0,
            "one_choice": True,
            "config": Path("c.yaml"),
            "overrides": ("dims.batch=3",),
            "factory": "net:build",
            "code_dirs": (Path("code"),),
            "state_key": "ema",
            "trust_pickle": True,
            "trust_code": True,
            "task": "text-generation",
            "dtype": "float32",
            "dynamic": ("x:0=batch",),
            "input_specs": ("x:[batch=2,3]:float32",),
            "output_names": ("y",),
            "valid_tokens": "mask",
            "opset": 21,
            "compute_type": "bfloat16",
            "cache": "in-place",
            "require_layers": "all",
            "label_output": "y",
            "ignore_label": -1,
            "shift_labels": True,
            "batch_size": 4,
        }
    ]


def test_page_is_written_beside_the_package(cli: Cli, job: Job, tmp_path: Path):
    shown = cli("optimize", "model.pt", "-o", "build/fast", "--within", "parity", "--json")
    assert (shown.err, shown.json["precision"]) == ("", "int8")
    page = (tmp_path / "build" / "fast.html").read_text()
    assert "FASTEST GOOD PACKAGE" in page
    assert "moh-deploy optimize model.pt -o build/fast --within parity --json" in page
    cli("optimize", "model.pt", "-o", "build/fast", "--within", "parity", "--html", "mine.html")
    assert (tmp_path / "mine.html").is_file()


def test_page_of_an_earlier_run_stays_with_its_package_if_there_is_no_answer(
    cli: Cli, job: Job, tmp_path: Path
):
    arguments = ("optimize", "model.pt", "-o", "fast", "--within", "parity")
    cli(*arguments)
    before = (tmp_path / "fast.html").read_text()

    def fail() -> None:
        raise ValidationError("nothing is good.")

    job.act = fail
    assert cli(*arguments).exit_code == 1
    assert (tmp_path / "fast.html").read_text() == before


@pytest.mark.parametrize(
    ("ends", "code"), [(KeyboardInterrupt(), 130), (ValidationError("nothing is good."), 1)]
)
def test_folder_of_unfinished_work_is_named(
    cli: Cli, job: Job, ends: BaseException, code: int, tmp_path: Path
):
    def end() -> None:
        (tmp_path / "fast.work").mkdir(exist_ok=True)
        raise ends

    job.act = end
    ended = cli("optimize", "model.pt", "-o", "fast", "--within", "parity")
    assert (ended.exit_code, ended.out) == (code, "")
    assert "fast.work keeps what is done, and the same command goes on" in ended.err


def test_condition_and_a_place_for_the_output_are_needed(cli: Cli, job: Job, tmp_path: Path):
    missing = cli("optimize", "model.pt", "-o", "fast")
    assert (missing.exit_code, "--within" in missing.err) == (2, True)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").touch()
    refused = cli("optimize", "model.pt", "-o", "notes", "--within", "parity")
    assert (refused.exit_code, "will not be overwritten" in refused.err) == (5, True)
    (tmp_path / "fast.html").write_text("mine")
    refused = cli("optimize", "model.pt", "-o", "fast", "--within", "parity")
    assert (refused.exit_code, "not a page of moh-deploy" in refused.err) == (5, True)
    assert not job.calls


def test_package_is_no_model(cli: Cli, tmp_path: Path):
    root = write_package(tmp_path / "package").root
    refused = cli("optimize", root, "-o", tmp_path / "fast", "--within", "parity", "--json")
    assert (refused.exit_code, refused.json["error"]["type"]) == (2, "ConfigError")
    assert "is a package already" in refused.json["error"]["message"]
    assert [path.name for path in tmp_path.iterdir()] == ["package"]
