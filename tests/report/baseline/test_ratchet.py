import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moh_deploy.errors import ConfigError, PackageError, ValidationError
from moh_deploy.report.baseline.figures import Figure, path_key, reference_key
from moh_deploy.report.baseline.ratchet import Ratchet
from moh_deploy.report.baseline.result import RatchetResult
from moh_deploy.validate.reference.reference import RECORDED

OUTPUT = "output 'y'"
REACHED = (
    Figure.exact("all", "vector_sets", 3),
    Figure.exact(OUTPUT, "elements", 100),
    Figure.exact(OUTPUT, "max_abs_error", 1e-6, grain=1e-6),
    Figure.exact("layer 'a'", "explained_flips", 4),
    Figure.exact("layer 'a'", "agreement", 0.99),
    Figure.exact("layer 'a'", "on_kernel", 1),
)


def ratio(value: float, low: float, high: float) -> Figure:
    return Figure("inputs, beside dense", "ratio", value, low, high)


def metric(name: str, value: float) -> Figure:
    return Figure.exact("metric", name, value)


def changed(name: str, value: float) -> tuple[Figure, ...]:
    return tuple(
        replace(figure, value=value, low=value, high=value) if figure.name == name else figure
        for figure in REACHED
    )


def run(
    path: Path, *figures: Figure, update: bool = False, machine: str | None = None
) -> RatchetResult:
    ratchet = Ratchet.open(path, "verify", update=update)
    return ratchet.judge(figures, machine=machine)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """What `REACHED` is written as."""
    path = tmp_path / "baseline.json"
    assert run(path, *REACHED, update=True).updated
    return path


def outcome(result: RatchetResult, name: str) -> str:
    (found,) = [entry.outcome for entry in result.entries if entry.name == name]
    return found


def test_the_same_run_is_held(file: Path):
    result = run(file, *REACHED)
    assert {entry.outcome for entry in result.entries} == {"held"}
    assert result.failure is None
    assert result.summary == f"{file}: 6 held"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("vector_sets", 2, "worse"),
        ("vector_sets", 4, "better"),
        ("elements", 99, "worse"),
        ("max_abs_error", 2.9e-6, "held"),  # twice as much, and the grain
        ("max_abs_error", 3.1e-6, "worse"),
        ("max_abs_error", math.nan, "worse"),
        ("max_abs_error", math.inf, "worse"),
        ("explained_flips", 8, "held"),
        ("explained_flips", 9, "worse"),
        ("explained_flips", 0, "better"),
        ("agreement", 0.981, "held"),
        ("agreement", 0.979, "worse"),
        ("on_kernel", 0, "worse"),
    ],
)
def test_figures_may_be_worse_by_their_slack(file: Path, name: str, value: float, expected: str):
    result = run(file, *changed(name, value))
    assert outcome(result, name) == expected
    assert (result.failure is not None) == (expected == "worse")


@pytest.mark.parametrize(
    ("was", "now", "expected"),
    [
        # Slack is toward worse, whatever the sign.
        (metric("score", 0.97), metric("score", 0.961), "held"),
        (metric("score", 0.97), metric("score", 0.960), "worse"),
        (metric("score", -10.0), metric("score", -10.09), "held"),
        (metric("score", -10.0), metric("score", -10.11), "worse"),
        (metric("loss", 12.0), metric("loss", 12.11), "held"),
        (metric("loss", 12.0), metric("loss", 12.13), "worse"),
        (metric("loss", -10.0), metric("loss", -9.91), "held"),
        (metric("loss", -10.0), metric("loss", -9.89), "worse"),
        # Intervals that are apart by less than the slack are noise.
        (ratio(0.50, 0.48, 0.52), ratio(0.60, 0.56, 0.66), "held"),
        (ratio(0.50, 0.48, 0.52), ratio(0.60, 0.58, 0.66), "worse"),
        (ratio(0.50, 0.48, 0.52), ratio(0.40, 0.36, 0.43), "better"),
        (ratio(0.50, 0.48, 0.52), ratio(0.40, 0.36, 0.45), "held"),
    ],
)
def test_figure_is_worse_beyond_its_slack_alone(
    tmp_path: Path, was: Figure, now: Figure, expected: str
):
    path = tmp_path / "baseline.json"
    run(path, was, update=True)
    assert outcome(run(path, now), now.name) == expected


def test_failure_says_what_is_was_and_is_allowed(file: Path):
    failure = run(file, *changed("max_abs_error", 1e-4)).failure
    assert isinstance(failure, ValidationError)
    assert failure.message == (
        f"worse than {file}: output 'y': max abs error: 0.0001, was 1e-06, allowed at most 3e-06."
    )
    assert "--update-baseline" in str(failure.hint)


def test_update_takes_what_is_better_and_new_alone(file: Path):
    earlier = file.read_text()
    held = run(file, *changed("max_abs_error", 1.5e-6), update=True)
    assert (held.updated, file.read_text()) == (False, earlier)
    new = Figure.exact("layer 'b'", "explained_flips", 1)
    better = {sample.name: sample for sample in changed("explained_flips", 0)}
    better["max_abs_error"] = Figure.exact(OUTPUT, "max_abs_error", 1.5e-6)
    assert run(file, *better.values(), new, update=True).updated
    content = json.loads(file.read_text())["verify"]["figures"]
    assert content["layer 'a'"]["explained_flips"] == 0
    assert content["layer 'b'"] == {"explained_flips": 1}
    assert content[OUTPUT]["max_abs_error"] == 1e-6


NEW = Figure.exact("layer 'b'", "explained_flips", 1)
IN_PART = [figure for figure in changed("explained_flips", 0) if figure.name != "agreement"]
OF_OUTPUT = [figure for figure in REACHED if figure.group == OUTPUT]


@pytest.mark.parametrize(
    ("figures", "reason"),
    [
        (changed("elements", 50), "numbers compared: 50, was 100"),
        (IN_PART, "agreement of decisions: was 0.99, and is not there any more"),
        (OF_OUTPUT, "all: vector sets: was 3, and is not there any more. (3 more)"),
    ],
)
def test_nothing_is_written_where_a_figure_is_worse_or_gone(
    file: Path, figures: Sequence[Figure], reason: str
):
    earlier = file.read_text()
    result = run(file, *figures, NEW, update=True)
    assert (result.updated, file.read_text()) == (False, earlier)
    assert reason in str(result.failure)
    assert reason in str(run(file, *figures).failure)


Content = dict[str, Any]


def edit(file: Path, change: Callable[[Content], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def figures_of(content: Content) -> Content:
    return content["verify"]["figures"]


@pytest.mark.parametrize(
    "change",
    [
        lambda content: figures_of(content)[OUTPUT].pop("max_abs_error"),
        lambda content: figures_of(content).pop("layer 'a'"),
        lambda content: figures_of(content)[OUTPUT].update(max_abs_error=1.0),
        lambda content: content.update(slack={"max_abs_error": {"factor": 1e6}}),
        lambda content: content["verify"].update(machine="another"),
    ],
    ids=["figure gone", "layer gone", "looser", "more slack", "other machine"],
)
def test_edited_file_is_refused_until_it_is_updated(
    file: Path, change: Callable[[Content], object]
):
    edit(file, change)
    with pytest.raises(ConfigError, match="was edited since it was written") as error:
        run(file, *REACHED)
    assert "--update-baseline accepts the edits" in str(error.value.hint)
    result = run(file, *REACHED, update=True)
    assert "it was edited by hand" in result.summary
    assert result.updated
    assert run(file, *REACHED).failure is None


def test_file_of_before_is_compared_and_gets_its_digest(file: Path):
    edit(file, lambda content: content.pop("sha256"))
    result = run(file, *REACHED)
    assert result.failure is None
    assert "it has no digest, so an edit of it is not seen" in result.summary
    assert run(file, *REACHED, update=True).updated
    assert "digest" not in run(file, *REACHED).summary


def test_what_was_taken_out_by_hand_is_new(file: Path):
    edit(file, lambda content: figures_of(content)[OUTPUT].pop("max_abs_error"))
    assert run(file, *changed("max_abs_error", 1e-3), update=True).updated
    assert run(file, *changed("max_abs_error", 1e-3)).failure is None


def test_better_figures_are_named(file: Path):
    result = run(file, *changed("explained_flips", 0))
    assert result.better == ("layer 'a': explained flips: 0, was 4, allowed at most 8.",)
    assert result.summary.endswith("--update-baseline would tighten it")


def test_slack_of_the_file_replaces_the_usual_one(file: Path):
    edit(file, lambda content: content.update(slack={"explained_flips": {"factor": 1, "plus": 0}}))
    assert run(file, *REACHED, update=True).updated
    assert outcome(run(file, *changed("explained_flips", 5)), "explained_flips") == "worse"
    run(file, *changed("explained_flips", 3), update=True)
    assert json.loads(file.read_text())["slack"]["explained_flips"]["plus"] == 0


def test_figures_of_a_machine_are_compared_on_it_only(tmp_path: Path):
    path = tmp_path / "baseline.json"
    figures = (ratio(1, 1, 1), Figure.exact("inputs", "p50_ms", 10))
    run(path, *figures, update=True, machine="here")
    slow = (ratio(1, 1, 1), Figure.exact("inputs", "p50_ms", 100))
    assert outcome(run(path, *slow, machine="here"), "p50_ms") == "worse"
    elsewhere = run(path, *slow, machine="there")
    assert elsewhere.failure is None
    assert "p50 in ms: not compared, the file is of here" in elsewhere.entries[0].sentence


def test_figures_of_another_machine_are_not_taken(tmp_path: Path):
    path = tmp_path / "baseline.json"
    run(path, ratio(1, 1, 1), update=True, machine="here")
    run(path, ratio(0.5, 0.5, 0.5), Figure.exact("i", "p50_ms", 1), update=True, machine="there")
    content = json.loads(path.read_text())["verify"]
    assert content == {"machine": "here", "figures": {"inputs, beside dense": {"ratio": 0.5}}}


def test_nothing_compared_is_no_pass(tmp_path: Path):
    path = tmp_path / "baseline.json"
    run(path, Figure.exact("inputs", "p50_ms", 10), update=True, machine="here")
    result = run(path, Figure.exact("inputs", "p50_ms", 1), machine="there")
    assert "could be compared, so nothing is proven" in str(result.failure)


def test_file_of_something_else_is_refused(file: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"layer 'a' and 1 more; this run has output 'z'"):
        run(file, Figure.exact("all", "vector_sets", 3), Figure.exact("output 'z'", "elements", 1))
    with pytest.raises(ConfigError, match="holds nothing of bench"):
        Ratchet.open(file, "bench", update=False)
    with pytest.raises(ConfigError, match="no baseline file") as error:
        Ratchet.open(tmp_path / "none.json", "verify", update=False)
    assert "--update-baseline writes it" in str(error.value.hint)


def test_both_commands_share_a_file(file: Path):
    ratchet = Ratchet.open(file, "bench", update=True)
    assert ratchet.judge([ratio(1, 1, 1)]).updated
    assert json.loads(file.read_text()).keys() == {*("schema_version", "verify", "bench", "sha256")}
    assert run(file, *REACHED).failure is None


def test_update_needs_a_file_that_can_be_written(tmp_path: Path):
    assert Ratchet.open(None, "verify", update=False) is None
    with pytest.raises(ConfigError, match="without a baseline file"):
        Ratchet.open(None, "verify", update=True)
    with pytest.raises(PackageError, match="cannot be written: there is no directory"):
        Ratchet.open(tmp_path / "none" / "baseline.json", "verify", update=True)


def content(**parts: object) -> str:
    return json.dumps({"schema_version": 1, **parts})


def of_ratio(**entry: object) -> dict[str, object]:
    return {"figures": {"a": {"ratio": entry}}}


def of_a(name: str, value: object) -> dict[str, object]:
    return {"figures": {"a": {name: value}}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not valid JSON"),
        ("<<<<<<< ours\n{}", "is not valid JSON"),
        ('{"a": 1, "a": 2}', "'a' is there twice"),
        ("[" * 100_000, "is not valid JSON"),
        ("[]", "it has no schema_version"),
        ('{"schema_version": 2}', "schema_version is 2, this moh-deploy reads 1"),
        (content(verfy={}), "verfy is not a known key"),
        (content(verify={"figures": {}}), "verify.figures is {}, expected an object of at least"),
        (content(verify={"machine": "x"}), "verify.figures is missing"),
        (content(verify=3), "verify is 3, expected an object"),
        (content(bench=of_ratio(value="1", low=1, high=3)), 'a.ratio.value is "1", expected a fin'),
        (content(bench=of_ratio(value=1, low=1)), "a.ratio.high is missing"),
        (content(bench=of_ratio(value=1, low=2, high=3)), "1.0 is not between"),
        (content(verify=of_a("p51", 1)), "no figure 'p51', there are vector_sets"),
        (content(verify=of_a("elements", math.nan)), "elements is NaN, expected a finite number,"),
        (content(verify=of_a("elements", True)), "figures.a.elements is true, expected a finite"),
        (content(slack={"ratio": {"factor": 0.5}}), "ratio.factor is 0.5, expected a number of at"),
    ],
)
def test_file_of_another_form_is_refused(tmp_path: Path, text: str, message: str):
    path = tmp_path / "baseline.json"
    path.write_text(text)
    for update in (False, True):
        with pytest.raises(ConfigError, match=message) as error:
            Ratchet.open(path, "verify", update=update)
        assert str(path) in error.value.message
        assert not re.search("constrained|Input|Entry", error.value.message)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("elements", -1, "a whole number of at least 0"),
        ("elements", 1.5, "a whole number of at least 0"),
        ("max_abs_error", -1e-6, "a number of at least 0"),
        ("agreement", 1.01, "a number from 0 to 1"),
        ("on_kernel", 2, "a whole number from 0 to 1"),
        ("peak_memory_bytes", 0.5, "a whole number of at least 0"),
        ("ratio", {"value": 0.1, "low": -0.5, "high": 0.2}, "a number of at least 0"),
    ],
)
def test_figure_that_nothing_reaches_is_refused(
    tmp_path: Path, name: str, value: object, expected: str
):
    path = tmp_path / "baseline.json"
    path.write_text(content(verify={"figures": {OUTPUT: {name: value}}}))
    wrong = value["low"] if isinstance(value, dict) else value
    with pytest.raises(ConfigError) as error:
        Ratchet.open(path, "verify", update=True)
    assert error.value.message == (
        f"{path}: verify: figures.{OUTPUT}.{name} is {wrong:g}, expected {expected}."
    )


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a package in it, in which the command runs."""
    for name in ("build/last", "build/a, b", "ci"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_one_directory_has_one_key(checkout: Path):
    names = ["build/last", "./build/last/", "build/../build/last", str(checkout / "build/last")]
    assert {path_key(name, Path("model.json")) for name in names} == {"build/last"}
    assert {path_key(name, checkout / "model.json") for name in names} == {"build/last"}
    assert {path_key(name, Path("ci/model.json")) for name in names} == {"../build/last"}


def test_key_is_of_the_path_as_it_is_named(checkout: Path, monkeypatch: pytest.MonkeyPatch):
    (checkout / "current").symlink_to("build/last")
    assert path_key("current", Path("model.json")) == "current"
    assert path_key("/data/in.npz", Path("/srv/model.json")) == "/data/in.npz"
    assert path_key("/data/in.npz", Path("/data/ci/model.json")) == "../in.npz"
    # The directory in which the command runs does not matter.
    monkeypatch.chdir(checkout / "ci")
    assert path_key("../build/last", Path("../model.json")) == "build/last"


@pytest.mark.parametrize("what", ["package", "engine", "ONNX model", "original model"])
def test_paths_in_references_have_their_keys(checkout: Path, what: str):
    file = Path("ci/model.json")
    for named in ("build/last", checkout / "build/last"):
        assert reference_key(f"{what} {named}", file) == f"{what} ../build/last"


def test_every_file_of_expected_outputs_has_its_key(checkout: Path):
    (checkout / "b.npz").touch()
    found = reference_key(f"expected outputs in {checkout}/build/last, b.npz", Path("m.json"))
    assert found == "expected outputs in build/last, b.npz"


@pytest.mark.parametrize(
    "words", [RECORDED, "the package with kernels", "original model ViT in memory", "package gone"]
)
def test_other_words_stay(checkout: Path, words: str):
    assert reference_key(words, Path("ci/model.json")) == words
