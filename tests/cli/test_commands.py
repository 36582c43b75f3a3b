"""inspect, run and verify as a user calls them."""

from pathlib import Path

import click
import numpy as np
import pytest

from moh_deploy.cli.output import is_quiet, write_files
from moh_deploy.system.npz import write_npz
from moh_deploy.validate.compare.parity_report import ParityReport
from tests.cli.run_cli import Cli
from tests.handmade_package import vectors, write_package
from tests.kernel_library import required_library, without_library
from tests.nightly import nightly
from tests.report.json_schema import validate_answer

pytestmark = pytest.mark.usefixtures("warm_processes")


def test_inspect_shows_layers_and_what_runs_them(cli: Cli, package: Path):
    shown = cli("inspect", package, "--kernels", "off")
    assert shown.exit_code == 0
    assert shown.err == ""
    assert "1 MoH layer: 1 function" in shown.out
    assert "blocks.0.attn" in shown.out
    assert "kernels: none (switched off)" in shown.out
    assert "3.1 % of the whole model" in shown.out


def test_inspect_says_that_there_is_no_layer(cli: Cli, tmp_path: Path):
    package = write_package(tmp_path / "package", with_layer=False).root
    assert "This model has no MoH layer" in cli("inspect", package).out
    assert cli("inspect", package, "--json").json["moh_layers"] == 0


def test_verify_exits_with_0_if_equal(cli: Cli, package: Path):
    shown = cli("verify", package)
    assert (shown.exit_code, shown.err) == (0, "")
    assert "EQUAL: max abs error" in shown.out
    content = cli("verify", package, "--json").json
    assert content["equal"] is True
    assert content["routing_agreement"] == 1.0
    assert content["layer_runs"][0]["path"] == "blocks.0.attn"
    assert content["package"] == str(package)
    assert "error" not in content


@pytest.mark.parametrize(
    ("command", "first"),
    [
        ("verify {}", "EQUAL: max abs error"),
        ("inspect {}", "1 MoH layer: 1 function; kernels skip "),
        ("bench {} --baseline functions --min-time 0s --warmup 0s", "MEASURED: {}: p50 "),
    ],
)
def test_answer_comes_first_and_tables_fit_80_columns(
    cli: Cli, package: Path, monkeypatch: pytest.MonkeyPatch, command: str, first: str
):
    monkeypatch.chdir(package.parent)
    monkeypatch.setattr("moh_deploy.cli.output._FILE_WIDTH", 80)
    arguments = [*command.format(package.name).split(), "--kernels", "off"]
    short, verbose = cli(*arguments), cli(*arguments, "--verbose")
    for shown in (short, verbose):
        assert (shown.exit_code, shown.err) == (0, "")
        assert shown.out.startswith(first.format(package.name))
    assert len(short.out.splitlines()) < min(40, len(verbose.out.splitlines()))


def test_verify_exits_with_1_if_not_equal(cli: Cli, tmp_path: Path):
    package = write_package(tmp_path / "package", scale=2.0).root
    shown = cli("verify", package)
    assert shown.exit_code == 1
    assert "NOT EQUAL" in shown.out
    assert shown.err.startswith("error: not equal to the reference: output 'y'")
    failed = cli("verify", package, "--json")
    assert failed.exit_code == 1
    assert failed.json["equal"] is False
    assert failed.json["error"]["type"] == "ValidationError"
    assert failed.json["error"]["exit_code"] == 1


def test_verify_of_nan_is_valid_json(cli: Cli, tmp_path: Path):
    package = write_package(tmp_path / "package", scale=float("nan")).root
    failed = cli("verify", package, "--json")
    assert failed.exit_code == 1
    assert failed.json["max_abs_error"] == "NaN"


def test_verify_takes_the_first_recorded_runs_only(cli: Cli, tmp_path: Path):
    sets = (vectors(batch=2), vectors(batch=3))
    package = write_package(tmp_path / "package", sets=sets).root
    assert cli("verify", package, "--json").json["vector_sets"] == 2
    assert cli("verify", package, "--vectors", "1", "--json").json["vector_sets"] == 1
    none = cli("verify", package, "--vectors", "0")
    assert (none.exit_code, none.err.count("vectors is 0")) == (2, 1)
    both = cli("verify", package, "--vectors", "1", "--inputs", tmp_path / "in.npz")
    assert (both.exit_code, both.err.count("give one")) == (2, 1)


def test_inline_writes_a_model(cli: Cli, package: Path, tmp_path: Path):
    shown = cli("inline", package, "-o", tmp_path / "flat.onnx")
    assert (shown.exit_code, shown.err) == (0, "")
    assert "EQUAL to the original on 1 run: max abs error" in shown.out
    assert (tmp_path / "flat.onnx").is_file()
    content = cli("inline", package, "-o", tmp_path / "flat.onnx", "--json").json
    assert (content["opset"], content["weights"]) == (20, None)
    assert content["parity"]["equal"] is True


def test_run_writes_outputs(cli: Cli, package: Path, tmp_path: Path):
    expected = vectors(batch=4)
    write_npz(tmp_path / "in.npz", expected.inputs)
    files = ["--inputs", tmp_path / "in.npz", "--outputs", tmp_path / "out.npz"]
    files += ["--kernels", "off"]
    shown = cli("run", package, *files)
    assert shown.exit_code == 0
    assert "[4, 3, 8]" in shown.out
    assert "1 MoH layer: attention as function body, router in plain operators" in shown.out
    with np.load(tmp_path / "out.npz") as results:
        np.testing.assert_allclose(results["y"], expected.outputs["y"], atol=1e-5)
    content = cli("run", package, *files, "--json").json
    assert content["layer_runs"] == [
        {
            "path": "blocks.0.attn",
            "runs_as": "function",
            "router_runs_as": None,
            "projections_run_as": None,
            "by_size": None,
        }
    ]
    assert content["outputs"] == [{"name": "y", "dtype": "float32", "shape": [4, 3, 8]}]


@pytest.mark.parametrize("command", ["inspect", "run", "verify"])
def test_required_kernels_that_are_not_there_end_with_6(
    cli: Cli, package: Path, tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
):
    without_library(tmp_path / "none", monkeypatch)
    write_npz(tmp_path / "in.npz", vectors().inputs)
    files = [] if command == "inspect" else ["--inputs", tmp_path / "in.npz"]
    files += ["--outputs", tmp_path / "out.npz"] if command == "run" else []
    failed = cli(command, package, *files, "--kernels", "require")
    assert failed.exit_code == 6
    assert "there is no kernel library: moh-deploy was built without CPU kernels" in failed.err
    assert not (tmp_path / "out.npz").exists()


BENCH = ("--threads", "1", "--min-time", "0s", "--warmup", "0ms")


@nightly
def test_bench_takes_many_sizes_after_one_option(cli: Cli, package: Path):
    sizes = ["--batch", "2", "3", "--size", "seq=3", "seq=4"]
    content = cli("bench", *sizes, package, *BENCH, "--json").json
    assert [result["sizes"] for result in content["results"]] == [
        {"batch": 2, "seq": 3},
        {"batch": 2, "seq": 4},
        {"batch": 3, "seq": 3},
        {"batch": 3, "seq": 4},
    ]
    assert content["passed"] is None


def test_bench_ends_with_1_if_a_gate_fails(cli: Cli, package: Path):
    passed = cli("bench", package, *BENCH, "--gate", "p50 < 1 min")
    assert (passed.exit_code, passed.err) == (0, "")
    assert "gate 'p50 < 1 min' passed" in passed.out
    failed = cli("bench", package, *BENCH, "--gate", "p50 > 1 min")
    assert failed.exit_code == 1
    assert "error: gate 'p50 > 1 min' failed" in failed.err
    assert "asked for > 60000 ms" in failed.err
    unmeasured = cli("bench", package, *BENCH, "--gate", "p99 < 1 min", "--json")
    assert (unmeasured.exit_code, unmeasured.json["passed"]) == (1, False)
    assert unmeasured.json["error"]["type"] == "ValidationError"
    assert "p99 needs 100 runs" in unmeasured.json["error"]["message"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bench", "--gate", "p5O < 1 ms"), "hint: Did you mean 'p50'?"),
        (("bench", "--gate", "p50 < 1.05 * baseline"), "hint: Give one: --baseline dense."),
        (("bench", "--min-time", "soon"), "--min-time is 'soon', expected a time such as 5s or"),
        (("tune", "--min-time", "soon"), "--min-time is 'soon', expected a time such as 5s or"),
        (("bench", "--size", "seq"), "'seq' is no size, expected NAME=N"),
        (("bench", "--size", "sec=2"), "hint: Did you mean 'seq'?"),
    ],
)
def test_wrong_options_are_refused(
    cli: Cli, package: Path, arguments: tuple[str, ...], message: str
):
    command, *options = arguments
    refused = cli(command, package, *options)
    assert (refused.exit_code, refused.out) == (2, "")
    assert message in refused.err


def test_tune_measures_and_writes(cli: Cli, package: Path):
    required_library()
    shown = cli("tune", package, "--threads", "1", "--min-time", "0")
    assert (shown.exit_code, shown.err) == (0, "")
    assert "layers, CPU time of a run, 1 thread, at batch=2, seq=3" in shown.out
    assert f"written to {package}" in shown.out
    content = cli("inspect", package, "--json").json
    assert content["layers"][0]["choice"] in ("dense", "sparse")
    assert content["tuning"]["sizes"] == [{"batch": 2, "seq": 3}]


def test_tune_json(cli: Cli, package: Path):
    required_library()
    content = cli("tune", package, "--min-time", "0ms", "--dry-run", "--json").json
    assert content["written"] is False
    assert content["layers"][0]["measured_ms"].keys() == {"dense", "sparse"}
    assert content["tuning"]["clock"] == "wall"


def test_tune_takes_choices(cli: Cli, package: Path):
    shown = cli("tune", package, "--choose", "blocks.0.attn=dense")
    assert shown.exit_code == 0
    assert cli("inspect", package, "--json").json["layers"][0]["runs_as"] == "dense"
    assert "1 MoH layer: 1 dense" in cli("inspect", package).out
    refused = cli("tune", package, "--choose", "blocks.0.attn=fast", "--json")
    assert (refused.exit_code, refused.json["error"]["type"]) == (2, "ConfigError")


def test_verify_writes_reports_for_a_ci(cli: Cli, package: Path, tmp_path: Path):
    junit, markdown = tmp_path / "junit.xml", tmp_path / "comment.md"
    shown = cli("verify", package, "--junit", junit, "--markdown", markdown)
    assert shown.exit_code == 0
    assert 'failures="0" errors="0"' in junit.read_text()
    assert markdown.read_text().splitlines()[0].endswith("/package: equal")
    validate_answer("verify", cli("verify", package, "--json").json)


def test_verify_without_an_answer_overwrites_reports_of_an_earlier_run(
    cli: Cli, package: Path, tmp_path: Path
):
    junit = tmp_path / "junit.xml"
    assert cli("verify", package, "--junit", junit).exit_code == 0
    (package / "model.onnx").write_bytes(b"")
    assert cli("verify", package, "--junit", junit).exit_code == 5
    assert 'errors="1"' in junit.read_text()
    assert "has changed since the package was written" in junit.read_text()
    assert list(tmp_path.glob("*partial*")) == []


def test_verify_refuses_a_report_file_that_cannot_be_written(
    cli: Cli, package: Path, tmp_path: Path
):
    shown = cli("verify", package, "--junit", tmp_path / "none" / "junit.xml")
    assert shown.exit_code == 5
    assert "junit.xml cannot be written" in shown.err


def test_report_does_not_overwrite_a_file_of_the_user(cli: Cli, package: Path, tmp_path: Path):
    (tmp_path / "keepme.py").write_text("import torch\n")
    for option in ("--junit", "--markdown", "--html"):
        shown = cli("verify", package, option, tmp_path / "keepme.py")
        assert shown.exit_code == 5
        assert "keepme.py exists and is not a" in shown.err
    assert (tmp_path / "keepme.py").read_text() == "import torch\n"


def test_pages_are_written_beside_what_is_printed(cli: Cli, package: Path, tmp_path: Path):
    html = tmp_path / "my report.html"
    assert cli("verify", package, "--html", html).exit_code == 0
    assert "EQUAL" in html.read_text()
    assert f"moh-deploy verify {package} --html &#39;{html}&#39;" in html.read_text()
    assert cli("bench", package, *BENCH, "--gate", "p50 > 1 min", "--html", html).exit_code == 1
    assert "GATES FAILED" in html.read_text()


def test_package_has_a_page_with_the_heads_of_its_recorded_runs(
    cli: Cli, package: Path, tmp_path: Path
):
    html = tmp_path / "model.html"
    choose = ("--choose", "blocks.0.attn=dense", "--html", html)
    assert cli("tune", package, *choose).exit_code == 0
    assert "<title>TUNED: " in html.read_text()
    assert cli("inspect", package, "--html", html).exit_code == 0
    assert "<title>1 MoH layer: " in html.read_text()
    for section in ("Load of heads", "Where time goes, sparse beside dense", "Speed by open heads"):
        assert f"<h2>{section}</h2>" in html.read_text()
    # [B, S, H] of the recorded run.
    gates = vectors().gates[0]
    (load,) = cli("inspect", package, "--json").json["head_loads"]
    assert load["on"] == (gates != 0).sum(axis=(0, 1)).tolist()
    assert load["tokens"] == gates[..., 0].size


def test_measurement_without_an_answer_overwrites_reports_of_an_earlier_run(
    cli: Cli, package: Path, tmp_path: Path
):
    html, markdown = tmp_path / "report.html", tmp_path / "report.md"
    files = ("--html", html, "--markdown", markdown)
    assert cli("bench", package, *BENCH, *files).exit_code == 0
    (package / "model.onnx").write_bytes(b"")
    assert cli("bench", package, *BENCH, *files).exit_code == 5
    assert "NO ANSWER" in html.read_text()
    for file in (html, markdown):
        assert "has changed since the package was written" in file.read_text()


def test_reports_of_a_job_that_was_stopped_say_that_it_did_not_finish(tmp_path: Path):
    html = tmp_path / "report.html"

    def stopped() -> ParityReport:
        assert "The comparison did not finish." in html.read_text()
        raise KeyboardInterrupt

    context = click.Context(click.Command("verify"), info_name="verify", obj=["verify", "model"])
    with context, pytest.raises(KeyboardInterrupt):
        write_files({"html": html}, "model", stopped)
    assert "NO ANSWER" in html.read_text()


def test_two_reports_in_one_file_are_refused(cli: Cli, package: Path, tmp_path: Path):
    file, same = tmp_path / "report", tmp_path / "." / "report"
    refused = cli("verify", package, "--html", file, "--junit", same)
    assert refused.exit_code == 2
    assert "report is to hold 2 reports, expected one" in refused.err
    assert not file.exists()


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_is_hidden_in_a_log_of_json_alone(
    monkeypatch: pytest.MonkeyPatch, is_terminal: bool
):
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal)
    assert is_quiet(as_json=True) != is_terminal
    assert not is_quiet(as_json=False)
