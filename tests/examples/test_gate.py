"""The GitHub Action and the job for GitLab on the digits example: their steps, run as a script."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from runpy import run_path
from typing import Any

import onnx_ir as ir
import pytest
import yaml
from junitparser import JUnitXml

from moh_deploy.package import OnnxPackage, PackageWriter
from tests.examples.ci_runner import REPOSITORY, CiRunner, Outcome
from tests.examples.digits_demo import DIGITS, DemoRun
from tests.nightly import nightly, sampled
from tests.true_manifest import finish_true

pytestmark = pytest.mark.usefixtures("warm_processes")

DOCS = (REPOSITORY / "docs" / "ci.md").read_text()
GITHUB_FILE = ".github/workflows/model.yml"
QUICK = "--threads=1\n--min-time=0s\n--warmup=0s"


@pytest.fixture
def runner(tmp_path: Path) -> CiRunner:
    return CiRunner(tmp_path)


@pytest.fixture
def package(runner: CiRunner, digits_demo: DemoRun) -> Path:
    """The digits package where a job would find it, as `package`."""
    assert digits_demo.process.returncode == 0, digits_demo.process.stderr
    return Path(shutil.copytree(digits_demo.package, runner.workspace / "package"))


def stale_weights(root: Path) -> None:
    """Change a matrix of the model and write the package again, as if nothing had happened."""
    package = OnnxPackage.open(root)
    model = ir.load(package.model_path)
    weights = max(
        (
            initializer
            for initializer in model.graph.initializers.values()
            if initializer.name.startswith("blocks.1.")
        ),
        key=lambda item: item.const_value.size,
    )
    weights.const_value = ir.tensor(1.1 * weights.const_value.numpy(), name=weights.name)
    with PackageWriter(root) as writer:
        ir.save(model, writer.path("model.onnx"))
        finish_true(writer, replace(package.manifest), package.vectors)


def reports_of(runner: CiRunner, outcome: Outcome) -> Path:
    """Where the reports are that the job leaves, whatever its end."""
    uploaded = outcome.uses["actions/upload-artifact"]
    assert uploaded["path"] == outcome.outputs["reports"]
    assert uploaded["if-no-files-found"] == "error"
    return runner.workspace / uploaded["path"]


@nightly
def test_action_exports_verifies_and_measures(runner: CiRunner, digits_demo: DemoRun) -> None:
    outcome = runner.run_action(
        package="build/package",
        checkpoint=str(digits_demo.checkpoint),
        config=str(DIGITS / "export.yaml"),
        export_args="--trust-code",
        requirements="timm",
        baselines="functions",
        gates="p50 < 1 min\n\n  p50 <= 100 * functions  \n",
        bench_args=QUICK,
    )
    assert outcome.exit_code == 0, outcome.log
    assert outcome.installed[0] == f"{REPOSITORY}[export]"
    assert (runner.root / "temp" / "moh-deploy-requirements.txt").read_text() == "timm\n"
    assert outcome.uses["actions/setup-python"] == {"python-version": "3.12"}
    assert [outcome.outputs[name] for name in ("verdict", "verify", "bench")] == ["passed"] * 3
    assert outcome.summary.startswith("### moh-deploy: passed\n")
    assert "### build/package: equal" in outcome.summary
    assert "gate 'p50 &lt; 1 min' passed" in outcome.summary
    reports = reports_of(runner, outcome)
    suites = JUnitXml.fromfile(str(reports / "verify.junit.xml"))
    assert {(suite.tests > 3, suite.failures, suite.errors) for suite in suites} == {(True, 0, 0)}
    for name in ("verify-html", "bench-html"):
        assert (runner.workspace / outcome.outputs[name]).read_text().startswith("<!DOCTYPE html>")
    assert json.loads((runner.workspace / outcome.outputs["verify-json"]).read_text())["equal"]
    assert len(json.loads((runner.workspace / outcome.outputs["bench-json"]).read_text())["gates"])


def test_planted_fault_ends_the_action_with_1_and_leaves_reports(
    runner: CiRunner, package: Path
) -> None:
    stale_weights(package)
    outcome = runner.run_action(package="package", gates="p50 < 1 min")
    assert outcome.exit_code == 1
    assert outcome.outputs["verdict"] == outcome.outputs["verify"] == "failed"
    assert outcome.outputs["bench"] == "not-run"
    assert outcome.outputs["bench-json"] == ""
    assert "error: not equal to the reference" in outcome.log
    assert "::error title=moh-deploy::verify: failed, bench: not-run; exit code 1." in outcome.log
    assert "### package: NOT EQUAL" in outcome.summary
    assert re.search(r"^- .*\blayer 'blocks\.\d\.attention' in vectors", outcome.summary, re.M)
    reports = reports_of(runner, outcome)
    suites = JUnitXml.fromfile(str(reports / "verify.junit.xml"))
    assert len(list(suites)) == 2  # on kernels, and on function bodies
    assert suites.failures > 0
    assert json.loads((reports / "verify.json").read_text())["error"]["exit_code"] == 1


@nightly
def test_accuracy_that_is_worse_than_it_was_ends_the_action_with_1(
    runner: CiRunner, package: Path, digits_demo: DemoRun
) -> None:
    for name in ("held-out.npz", "labels.npy"):
        shutil.copy(digits_demo.work_dir / name, runner.workspace)
    file = runner.workspace / "baseline.json"
    against = "against expected outputs in held-out.npz"
    figures = {f"top-1 of output 'logits' {against}": {"samples": 360, "score": 0.999}}
    file.write_text(json.dumps({"schema_version": 1, "verify": {"figures": figures}}))
    outcome = runner.run_action(
        package="package",
        inputs="held-out.npz",
        labels="labels.npy",
        policy=str(DIGITS / "policy.yaml"),
        baseline_file="baseline.json",
    )
    assert outcome.exit_code == 1, outcome.log
    assert outcome.outputs["verify"] == "failed"
    figure = rf"top-1 of output 'logits' {against}: score: 0\.\d+, was 0\.999, allowed"
    sentence = rf"Baseline file: WORSE[\s\S]*- {figure}"
    assert re.search(sentence, outcome.summary), outcome.summary
    assert "1 held, 1 worse" in outcome.summary


@nightly
def test_gate_that_does_not_hold_ends_the_action_with_1(runner: CiRunner, package: Path) -> None:
    outcome = runner.run_action(package="package", gates="p50 > 1 min", bench_args=QUICK)
    assert outcome.exit_code == 1
    found = [outcome.outputs[name] for name in ("verdict", "verify", "bench")]
    assert found == ["failed", "passed", "failed"]
    assert "gate 'p50 > 1 min' failed" in outcome.summary


@sampled(2)
@pytest.mark.parametrize(
    ("package_name", "exit_code", "message"),
    [("nowhere", 5, "nowhere"), ("", 2, "MOH_PACKAGE (input 'package') is empty")],
)
def test_without_a_package_nothing_passes(
    runner: CiRunner, package_name: str, exit_code: int, message: str
) -> None:
    outcome = runner.run_action(package=package_name)
    assert outcome.exit_code == exit_code
    assert outcome.outputs["verdict"] == "error"
    assert message in outcome.log
    assert outcome.summary.startswith("### moh-deploy: error\n")


@nightly
def test_package_without_vectors_does_not_pass(runner: CiRunner, package: Path) -> None:
    opened = OnnxPackage.open(package)
    with PackageWriter(package) as writer:
        writer.bring_along(opened, "model.onnx")
        finish_true(writer, opened.manifest, ())
    outcome = runner.run_action(package="package")
    assert outcome.exit_code == 1
    assert outcome.outputs["verdict"] == "failed"
    assert "there are no vectors to compare with, so nothing is proven" in outcome.summary


def test_verify_that_did_nothing_does_not_pass(runner: CiRunner, tmp_path: Path) -> None:
    idle = tmp_path / "bin" / "idle"
    idle.write_text('#!/bin/sh\n[ "$2" = moh_deploy ] || exec "$REAL_PYTHON" "$@"\n')
    idle.chmod(0o755)
    job = gitlab_job()
    outcome = runner.run_gitlab_job(job, MOH_PYTHON="idle")
    assert outcome.exit_code == 2
    assert "verify.junit.xml cannot be read" in outcome.log
    assert "### moh-deploy: error" in outcome.log


@sampled(2)
@pytest.mark.parametrize(
    ("asked", "verdicts", "message"),
    [
        ({"verify_args": "--help"}, ["error", "error", "not-run"], "junit.xml cannot be read"),
        ({"bench_args": "--help"}, ["error", "passed", "error"], "bench.json holds no answer"),
    ],
)
def test_command_that_came_to_no_answer_is_an_error(
    runner: CiRunner, package: Path, asked: dict[str, str], verdicts: list[str], message: str
) -> None:
    outcome = runner.run_action(package="package", **asked)
    assert outcome.exit_code == 2
    assert [outcome.outputs[name] for name in ("verdict", "verify", "bench")] == verdicts
    assert message in outcome.log


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<testsuites><testsuite tests='1'/></testsuites>", "holds no test"),
        ("<testsuite><testcase><skipped/></testcase></testsuite>", "all of them skipped"),
        ("<a><testcase/><testcase><failure/></testcase></a>", "1 of 2 tests that failed"),
        ("<a><testcase/><testcase><error/></testcase></a>", "1 of 2 tests that failed"),
        ("", "cannot be read"),
        ("<a><testcase/><testcase><skipped/></testcase></a>", None),
    ],
)
def test_junit_without_a_test_that_passed_is_no_pass(
    tmp_path: Path, text: str, expected: str | None
) -> None:
    file = tmp_path / "junit.xml"
    file.write_text(text)
    problem = run_path(str(REPOSITORY / "ci" / "check_junit.py"))["problem"](file)
    assert (problem is None) if expected is None else expected in problem


@nightly
def test_checkpoint_that_cannot_be_exported_ends_the_action(runner: CiRunner) -> None:
    (runner.workspace / "model.pt").write_text("no model")
    outcome = runner.run_action(package="package", checkpoint="model.pt")
    assert outcome.exit_code == 3
    assert (outcome.outputs["verdict"], outcome.outputs["verify"]) == ("error", "not-run")


@sampled(5)
@pytest.mark.parametrize(
    "hostile", ["$(touch pwned)", "`touch pwned`", "'; touch pwned; '", '" && touch pwned "', "-h"]
)
def test_inputs_are_arguments_and_never_commands(runner: CiRunner, hostile: str) -> None:
    outcome = runner.run_action(package=hostile, inputs=hostile, verify_args="--kernels\noff")
    assert outcome.exit_code == 5
    assert "error: " in outcome.log
    assert not list(runner.root.rglob("pwned"))


def test_reports_path_cannot_write_outputs_of_its_own(runner: CiRunner) -> None:
    outcome = runner.run_action(package="package", reports="reports\nverdict=passed")
    assert outcome.exit_code == 2
    assert outcome.outputs["verdict"] == ""


def test_reports_that_cannot_be_written_are_no_answer(runner: CiRunner) -> None:
    (runner.workspace / "taken").write_text("a file")
    outcome = runner.run_action(package="package", reports="taken")
    assert outcome.exit_code == 5
    assert "error: MOH_REPORTS (input 'reports') is taken, which is no directory" in outcome.log


def test_report_that_cannot_be_replaced_is_no_answer(runner: CiRunner) -> None:
    (runner.workspace / "moh-deploy-reports" / "verify.json").mkdir(parents=True)
    outcome = runner.run_action(package="package")
    assert outcome.exit_code == 5
    assert "is moh-deploy-reports, which is no directory that can be written." in outcome.log


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (None, "MOH_PYTHON is other, which is no program."),
        ("exit 1", "MOH_PYTHON is other, a Python that has no moh-deploy."),
        ('[ "$1" = -c ] || exit 1', "verify ended with 1, and moh-deploy-reports/verify.json"),
    ],
    ids=["absent", "bare", "broken"],
)
def test_python_that_cannot_run_moh_deploy_is_no_answer(
    runner: CiRunner, script: str | None, message: str
) -> None:
    if script is not None:
        other = runner.root / "bin" / "other"
        other.write_text(f"#!/bin/sh\n{script}\n")
        other.chmod(0o755)
    outcome = runner.run_gitlab_job(gitlab_job(), MOH_PYTHON="other")
    assert outcome.exit_code == 2
    assert message in outcome.log
    assert "### moh-deploy: error" in outcome.log


@nightly
def test_what_verify_says_is_no_command_to_github(runner: CiRunner) -> None:
    outcome = runner.run_action(package="::error::planted")
    found = re.search(r"^::stop-commands::(\w{32})$(.*)^::\1::$", outcome.log, re.M | re.S)
    assert "::error::planted" in found[2]
    assert "::error::planted" not in outcome.log.replace(found[0], "")


@nightly
def test_reports_of_an_earlier_run_do_not_speak_for_this_one(runner: CiRunner) -> None:
    reports = runner.workspace / "moh-deploy-reports"
    reports.mkdir()
    (reports / "bench.md").write_text("fast")
    outcome = runner.run_action(package="nowhere")
    assert "fast" not in outcome.summary
    assert outcome.outputs["bench-md"] == ""


@sampled(2)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_gate_ends_what_it_runs_and_says_so(
    runner: CiRunner, package: Path, number: signal.Signals
) -> None:
    summary, report = runner.root / "summary", runner.workspace / "moh-deploy-reports" / "bench.md"
    told = {"MOH_PACKAGE": "package", "MOH_BENCH_ARGS": "--min-time=1min"}
    with subprocess.Popen(
        ["bash", REPOSITORY / "ci" / "gate.sh"],
        cwd=runner.workspace,
        env={**runner.environment(), **told, "GITHUB_STEP_SUMMARY": str(summary)},
    ) as process:
        while not report.exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(timeout=60) == 128 + number
    assert summary.read_text().startswith(
        f"### moh-deploy: error\n\nverify: passed, bench: error; exit code {128 + number}\n"
    )
    assert "The measurement did not finish." in report.read_text()


# ---- What GitHub and GitLab take


@sampled(2)
@pytest.mark.parametrize(
    ("schema", "file"),
    [("github-actions", "action.yml"), ("github-workflows", ".github/workflows/ci.yml")],
)
def test_files_for_github_are_of_its_schemas(schema: str, file: str) -> None:
    check_schema(schema, REPOSITORY / file)


def test_job_in_the_docs_is_of_gitlabs_schema(tmp_path: Path) -> None:
    file = tmp_path / ".gitlab-ci.yml"
    file.write_text(shown_file(".gitlab-ci.yml"))
    check_schema("gitlab-ci", file)


def test_workflow_in_the_docs_is_of_githubs_schema(tmp_path: Path) -> None:
    file = tmp_path / "model.yml"
    file.write_text(shown_file(GITHUB_FILE))
    check_schema("github-workflows", file)


def test_uses_of_the_action_name_its_inputs_and_outputs() -> None:
    action = yaml.safe_load((REPOSITORY / "action.yml").read_text())
    workflow = (REPOSITORY / ".github" / "workflows" / "ci.yml").read_text()
    steps = yaml.safe_load(workflow)["jobs"]["action"]["steps"]
    shown = yaml.safe_load(shown_file(GITHUB_FILE))
    uses = [step["with"] for step in steps if step.get("uses") == "./"] + [
        shown["jobs"]["gate"]["steps"][-1]["with"]
    ]
    assert len(uses) == 3
    for given in uses:
        assert given.keys() <= action["inputs"].keys()
    read = re.findall(r"steps\.\w+\.outputs\.([\w-]+)", workflow)
    assert read
    assert set(read) <= action["outputs"].keys()
    listed = DOCS[DOCS.index("## Outputs of the action") : DOCS.index("## A baseline file")]
    assert action["outputs"].keys() <= set(re.findall(r"`([\w-]+)`", listed))


def test_docs_name_each_input_with_its_variable() -> None:
    action = yaml.safe_load((REPOSITORY / "action.yml").read_text())
    (gate,) = [step for step in action["runs"]["steps"] if step.get("id") == "gate"]
    variables = {
        value.removeprefix("${{ inputs.").removesuffix(" }}"): name
        for name, value in gate["env"].items()
    }
    rows = re.findall(r"^\| (?:`([a-z-]+)` )?\| (?:`(MOH_\w+)` )?\|", DOCS, re.M)
    expected = {(name, variables.get(name, "")) for name in action["inputs"]}
    assert {row for row in rows if any(row)} == expected | {("", "MOH_PYTHON")}
    script = (REPOSITORY / "ci" / "gate.sh").read_text()
    assert set(re.findall(r"\$\{(MOH_\w+)", script)) == {*variables.values(), "MOH_PYTHON"}


def shown_file(name: str) -> str:
    """Return the file of the docs whose first line is its name."""
    start = re.escape(f"# {name}\n")
    (text,) = re.findall(rf"^```yaml\n({start}.*?)^```$", DOCS, re.M | re.S)
    return str(text)


def check_schema(name: str, file: Path) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{name}"]
    finished = subprocess.run([*command, file], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr


# ---- GitLab


def gitlab_job() -> dict[str, Any]:
    (job,) = yaml.safe_load(shown_file(".gitlab-ci.yml")).values()
    assert isinstance(job, dict)
    return job


def test_gitlab_job_installs_in_separate_commands() -> None:
    packages, clone, checkout, install = gitlab_job()["before_script"]
    assert packages.startswith("apt-get update && apt-get install -y ")
    assert clone == 'git clone "$MOH_DEPLOY_REPOSITORY" moh-deploy'
    assert checkout == 'git -C moh-deploy checkout --detach "$MOH_DEPLOY_COMMIT"'
    assert install == "pip install ./moh-deploy"
    steps = yaml.safe_load(shown_file(GITHUB_FILE))["jobs"]["gate"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [packages]


@nightly
def test_gitlab_job_verifies_and_leaves_junit_where_it_says(
    runner: CiRunner, package: Path
) -> None:
    job = gitlab_job()
    job["variables"] |= {"MOH_PACKAGE": "package", "MOH_BENCH_ARGS": QUICK, "MOH_GATES": ""}
    job["variables"]["MOH_BASELINE_FILE"] = ""
    outcome = runner.run_gitlab_job(job)
    assert outcome.exit_code == 0, outcome.log
    assert "### package: equal" in outcome.log
    assert "verify: passed, bench: measured; exit code 0" in outcome.log  # there was no gate
    assert outcome.installed[:2] == ["install", "./moh-deploy"]
    assert job["artifacts"]["when"] == "always"
    for kept in (job["artifacts"]["reports"]["junit"], *job["artifacts"]["paths"]):
        assert list(runner.workspace.glob(kept))


@nightly
def test_gitlab_job_fails_on_a_planted_fault(runner: CiRunner, package: Path) -> None:
    stale_weights(package)
    outcome = runner.run_gitlab_job(gitlab_job(), MOH_PACKAGE="package", MOH_BASELINE_FILE="")
    assert outcome.exit_code == 1
    (junit,) = runner.workspace.glob(gitlab_job()["artifacts"]["reports"]["junit"])
    assert all(suite.failures > 0 for suite in JUnitXml.fromfile(str(junit)))
