import tempfile
import xml.etree.ElementTree as xml
from pathlib import Path

import numpy as np
import pytest

from moh_deploy.cli import prove
from moh_deploy.errors import ConfigError
from moh_deploy.system import isolate
from moh_deploy.system.npz import write_npz
from tests.cli.dying_probe import dying_probe
from tests.cli.run_cli import Cli
from tests.edge_case_package import inputs, write_edge_package
from tests.half_packages import write_unprotected
from tests.handmade_package import write_package
from tests.labelled_package import right_labels, samples, write_classifier
from tests.nightly import nightly
from tests.report.json_schema import validate, validate_answer
from tests.validate.edge_cases import planted_bugs

pytestmark = pytest.mark.usefixtures("warm_processes")

LONGEST = ("--longest", "batch=3", "--longest", "seq=9")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return write_edge_package(tmp_path / "package").root


def test_case_that_ends_the_process_is_named(cli: Cli, package: Path, monkeypatch):
    monkeypatch.setattr(prove, "_probed", dying_probe)
    killed = cli("probe", package, *LONGEST, "--kernels", "off")
    assert killed.exit_code == 1
    assert (
        f"error: the process that probes {package} ended with SIGSEGV in case"
        " 'inputs: zero: seq=0'.\nhint: Where it does not with --kernels off"
    ) in killed.err
    assert not list(Path(tempfile.gettempdir()).glob("dying-probe-*"))


def test_error_keeps_its_kind_and_its_hint(cli: Cli, package: Path):
    refused = cli("probe", package, "--valid-tokens", "valit", "--kernels", "off")
    assert refused.exit_code == 2
    assert "error: valid_tokens is 'valit'" in refused.err
    assert "hint: Did you mean 'valid'?" in refused.err


def test_every_option_of_the_command_reaches_the_other_process(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: dict[str, object] = {}

    def note(package_dir: Path, **options: object) -> None:
        asked.update(options, package_dir=package_dir)
        raise ConfigError("noted.")

    def original(checkpoint: Path, loading: dict[str, object], _: object) -> tuple[Path, object]:
        return checkpoint, loading["dtype"]

    monkeypatch.setattr(isolate, "_started", lambda folder, **_: isolate.carry_out(folder))
    monkeypatch.setattr(isolate, "_waited", lambda *_: 0)
    monkeypatch.setattr("moh_deploy.api.probe.probe", note)
    monkeypatch.setattr("moh_deploy.cli.prove.original_of", original)
    files = [tmp_path / name for name in ("a.npz", "b.npz", "policy.yaml", "model.pt")]
    for file in files:
        file.touch()
    a, b, policy, checkpoint = files
    where = ["--inputs", a, "--inputs", b, "--policy", policy, "--checkpoint", checkpoint]
    how = ["--valid-tokens", "valid", "--longest", "seq=9", "--kernels", "require"]
    shown = cli("probe", tmp_path, *where, *how, "--update-corpus", "--dtype", "float16")
    assert (shown.exit_code, shown.err) == (2, "error: noted.\n")
    del asked["progress"]
    assert asked == {
        "package_dir": tmp_path,
        "inputs": (a, b),
        "update_corpus": True,
        "valid_tokens": "valid",
        "longest": {"seq": 9},
        "kernels": "require",
        "runtime": None,
        "policy": policy,
        "original": (checkpoint, "float16"),
    }


# `moh-deploy verify --labels` as a user calls it.


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    return write_classifier(tmp_path / "classifier").root


def write_data(folder: Path, count: int) -> tuple[Path, Path]:
    """Write inputs with expected outputs, and labels as csv."""
    data = samples(count, seed=3)
    write_npz(folder / "val.npz", {**data.inputs, **data.outputs})
    np.savetxt(folder / "labels.csv", right_labels(data), "%d", header="label", comments="")
    return folder / "val.npz", folder / "labels.csv"


def test_metric_is_shown_on_both_sides(cli: Cli, classifier: Path, tmp_path: Path):
    inputs, labels = write_data(tmp_path, 400)
    shown = cli("verify", classifier, "--inputs", inputs, "--labels", labels)
    assert (shown.exit_code, shown.err) == (0, "")
    words = " ".join(shown.out.split())  # where lines break depends on the length of paths
    assert "top-1 of output 'logits', higher is better: 400 samples" in words
    assert "Interval: paired bootstrap, 10000 resamples" in words
    assert "EQUAL: max abs error" in shown.out


def test_not_knowing_is_exit_1_in_every_report(cli: Cli, classifier: Path, tmp_path: Path):
    inputs, labels = write_data(tmp_path, 40)
    files = [tmp_path / name for name in ("a.xml", "a.md", "a.html")]
    options = zip(("--junit", "--markdown", "--html"), files, strict=True)
    words = [word for pair in options for word in pair]
    shown = cli("verify", classifier, "--inputs", inputs, "--labels", labels, "--json", *words)
    assert shown.exit_code == 1
    content = shown.json
    validate_answer("verify", content)
    assert not content["equal"]
    assert content["accuracy"][0]["verdict"] == "cannot tell"
    assert content["accuracy"][0]["reason"] == content["reasons"][0]
    assert "error: inconclusive: top-1 went from 100.00 % to 100.00 %" in shown.err
    case = xml.parse(files[0]).find(".//testcase[@classname='moh-deploy.accuracy']/failure")
    assert case.get("message", "").startswith("inconclusive: top-1 went")
    assert all("inconclusive" in file.read_text() for file in files[1:])


def test_users_function_is_found_in_its_directory(cli: Cli, classifier: Path, tmp_path: Path):
    inputs, labels = write_data(tmp_path, 40)
    (tmp_path / "my_scores.py").write_text(
        "def brightest(outputs, labels):\n    return outputs['logits'].max(axis=1) + 1\n"
    )
    words = ["--inputs", inputs, "--labels", labels, "--metric", "my_scores:brightest"]
    missing = cli("verify", classifier, *words, "--better", "higher")
    assert missing.exit_code == 2
    assert "--code-dir" in missing.err
    words += ["--code-dir", tmp_path, "--better", "higher"]
    assert cli("verify", classifier, *words).exit_code == 0


QUICK = ["--kernels", "off", "--longest", "seq=9", "--longest", "batch=3"]


def test_probe_json(cli: Cli, package: Path, tmp_path: Path):
    write_npz(tmp_path / "in.npz", inputs(batch=4))
    content = cli("probe", package, *QUICK, "--inputs", tmp_path / "in.npz", "--json").json
    assert content["passed"] is True
    assert content["package"] == str(package)
    assert content["counts"] == {"passed": 24, "failed": 0, "not applicable": 4, "not run": 1}
    assert content["results"][0] == {
        "kind": "routing",
        "case": "ties",
        "place": "blocks.0.attn",
        "status": "passed",
        "detail": "gates and attention agree",
    }
    assert content["mining"]["searched"] == 4
    assert content["mining"]["samples"][0]["tokens"][0]["layer"].startswith("blocks.")
    assert content["corpus"] == {
        "samples": 0,
        "bytes": 0,
        "recorded_from": [],
        "smallest_margin": None,
        "written": False,
    }


def test_probe_exits_with_1_if_a_case_fails(cli: Cli, tmp_path: Path):
    bug = planted_bugs.softmax_without_the_maximum
    package = write_edge_package(tmp_path / "package", bug).root
    shown = cli("probe", package, *QUICK, "--junit", tmp_path / "probe.xml")
    assert shown.exit_code == 1
    assert "FAILED: " in shown.out
    assert shown.err.startswith(
        "error: the package does not stand its edge cases: gates of layer 'blocks.0.attn' in case"
        " 'all negative'"
    )
    failed = cli("probe", package, *QUICK, "--json")
    assert failed.json["error"]["exit_code"] == 1
    root = xml.parse(tmp_path / "probe.xml").getroot()
    assert root.get("name") == "moh-deploy probe"
    suite = root.find("testsuite")
    cases = {case.get("name"): case for case in suite.findall("testcase")}
    assert cases["verdict"].find("failure") is not None
    assert cases["saturated [blocks.0.attn]"].find("failure") is not None
    assert cases["ties [blocks.0.attn]"].find("failure") is None
    skipped = cases["padding only [model outputs]"].find("skipped")
    assert str(skipped.get("message")).startswith("not run: it is unknown")


def test_junit_of_a_probe_that_did_not_start_says_so(cli: Cli, tmp_path: Path):
    html = tmp_path / "probe.html"
    shown = cli("probe", tmp_path / "nothing", "--junit", tmp_path / "probe.xml", "--html", html)
    assert shown.exit_code == 5
    assert "NO ANSWER" in html.read_text()
    (error,) = xml.parse(tmp_path / "probe.xml").getroot().iter("error")
    assert "does not exist" in str(error.get("message"))


# bisect as a user calls it.


@pytest.fixture
def handmade(tmp_path: Path) -> Path:
    return write_package(tmp_path / "package").root


def test_nothing_diverges(cli: Cli, handmade: Path):
    shown = cli("bisect", handmade)
    assert (shown.exit_code, shown.err) == (0, "")
    assert shown.out.startswith("NOTHING DIVERGES: compared with the vectors recorded from")
    content = cli("bisect", handmade, "--json").json
    assert (content["diverges"], content["divergence"], content["repair"]) == (False, None, None)


def test_divergence_ends_with_1_and_says_where(cli: Cli, handmade: Path, tmp_path: Path):
    wrong = write_package(tmp_path / "wrong", scale=2.0).root
    shown = cli("bisect", wrong, "--reference", handmade, "--kernels", "off")
    assert shown.exit_code == 1
    assert shown.out.startswith("DIVERGES: first diverges at Mul 'scaled'")
    assert shown.err.startswith("error: first diverges at Mul 'scaled' in 'blocks.0.attn'")
    failed = cli("bisect", wrong, "--reference", handmade, "--json", "--kernels", "off")
    assert failed.exit_code == 1
    found = failed.json["divergence"]
    assert (found["cause"], found["node"]["node"]) == ("graph", "scaled")
    assert found["differences"] == ["weight 'scale' differs by up to 1 of its largest value"]
    assert failed.json["error"]["type"] == "ValidationError"
    validate("bisect", failed.json)


def test_page_of_a_divergence_names_the_node(cli: Cli, handmade: Path, tmp_path: Path):
    wrong = write_package(tmp_path / "wrong", scale=2.0).root
    html = tmp_path / "bisect.html"
    files = ("--html", html, "--markdown", tmp_path / "bisect.md")
    assert cli("bisect", wrong, "--reference", handmade, "--kernels", "off", *files).exit_code == 1
    assert "<title>DIVERGES: " in html.read_text()
    assert "First diverges at Mul &#39;scaled&#39;" in html.read_text()
    assert "scaled" in (tmp_path / "bisect.md").read_text()


def test_suspects_are_listed_without_a_reference(cli: Cli, tmp_path: Path):
    wrong = write_package(tmp_path / "wrong", scale=2.0).root
    failed = cli("bisect", wrong, "--kernels", "off")
    assert failed.exit_code == 1
    assert "nodes that may be wrong" in failed.out
    assert "one of 2 nodes: MoHAttention 'blocks.0.attn/moh'" in failed.err


@nightly
def test_repaired_package_ends_with_0(cli: Cli, tmp_path: Path):
    whole = write_package(tmp_path / "whole")
    half = write_unprotected(whole, tmp_path / "half", stays=lambda node: False).root
    options = ["--target", "1e-6", "--reference", whole.root]
    failed = cli("bisect", half, *options)
    assert failed.exit_code == 1
    assert "hint: Write the repaired package with --output DIR." in failed.err
    validate("bisect", cli("bisect", half, *options, "--json").json)
    shown = cli("bisect", half, *options, "--output", tmp_path / "out")
    assert (shown.exit_code, shown.err) == (0, "")
    assert "has to be in float32" in shown.out
    assert "REPAIRED: passes verify" in shown.out
    content = cli("bisect", tmp_path / "out", "--target", "1e-6", "--json").json
    assert content["diverges"] is False
