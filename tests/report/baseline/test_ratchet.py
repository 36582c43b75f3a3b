from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moh_deploy.errors import ConfigError, PackageError, ValidationError
from moh_deploy.report.baseline.figures import KINDS, Figure
from moh_deploy.report.baseline.ratchet import Ratchet
from moh_deploy.report.baseline.result import RatchetResult

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


def changed(name: str, value: float) -> tuple[Figure, ...]:
    return tuple(
        Figure.exact(one.group, name, value, grain=one.grain) if one.name == name else one
        for one in REACHED
    )


def run(
    path: Path, *figures: Figure, update: bool = False, machine: str | None = None
) -> RatchetResult:
    ratchet = Ratchet.open(path, "verify", update=update)
    assert ratchet is not None
    return ratchet.judge(figures, machine=machine)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """What `REACHED` is written as."""
    path = tmp_path / "baseline.json"
    assert run(path, *REACHED, update=True).updated
    return path


def outcome(result: RatchetResult, name: str) -> str:
    (found,) = [one.outcome for one in result.entries if one.name == name]
    return found


def test_the_same_run_is_held(file: Path):
    result = run(file, *REACHED)
    assert {one.outcome for one in result.entries} == {"held"}
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
    ("name", "was", "held", "worse"),
    [
        ("score", 0.97, 0.961, 0.960),
        ("score", -10.0, -10.09, -10.11),
        ("loss", 12.0, 12.11, 12.13),
        ("loss", -10.0, -9.91, -9.89),
    ],
)
def test_slack_is_toward_worse_whatever_the_sign(
    tmp_path: Path, name: str, was: float, held: float, worse: float
):
    path = tmp_path / "baseline.json"
    run(path, Figure.exact("metric", name, was), update=True)
    assert outcome(run(path, Figure.exact("metric", name, held)), name) == "held"
    assert outcome(run(path, Figure.exact("metric", name, worse)), name) == "worse"


def test_failure_says_what_is_was_and_is_allowed(file: Path):
    failure = run(file, *changed("max_abs_error", 1e-4)).failure
    assert isinstance(failure, ValidationError)
    assert failure.message == (
        f"worse than {file}: output 'y': max abs error: 0.0001, was 1e-06, allowed at most 3e-06."
    )
    assert "--update-baseline" in str(failure.hint)


def test_what_is_not_compared_any_more_fails(file: Path):
    result = run(file, *(one for one in REACHED if one.name != "agreement"))
    assert outcome(result, "agreement") == "gone"
    assert "agreement of decisions: was 0.99, and is not there any more" in str(result.failure)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (ratio(0.60, 0.56, 0.66), "held"),  # the intervals are apart by less than the slack
        (ratio(0.60, 0.58, 0.66), "worse"),
        (ratio(0.40, 0.36, 0.43), "better"),
        (ratio(0.40, 0.36, 0.45), "held"),
    ],
)
def test_noise_of_a_ratio_is_no_failure(tmp_path: Path, now: Figure, expected: str):
    path = tmp_path / "baseline.json"
    run(path, ratio(0.50, 0.48, 0.52), update=True)
    assert outcome(run(path, now), "ratio") == expected


def test_update_takes_what_is_better_and_new_alone(file: Path):
    earlier = file.read_text()
    held = run(file, *changed("max_abs_error", 1.5e-6), update=True)
    assert (held.updated, file.read_text()) == (False, earlier)
    new = Figure.exact("layer 'b'", "explained_flips", 1)
    better = {one.name: one for one in changed("explained_flips", 0)}
    better["max_abs_error"] = Figure.exact(OUTPUT, "max_abs_error", 1.5e-6)
    assert run(file, *better.values(), new, update=True).updated
    content = json.loads(file.read_text())["verify"]["figures"]
    assert content["layer 'a'"]["explained_flips"] == 0
    assert content["layer 'b'"] == {"explained_flips": 1}
    assert content[OUTPUT]["max_abs_error"] == 1e-6


def test_update_never_loosens(file: Path):
    earlier = file.read_text()
    worse = (*changed("elements", 50), Figure.exact("layer 'b'", "explained_flips", 1))
    result = run(file, *worse, update=True)
    assert (result.updated, file.read_text()) == (False, earlier)
    assert result.failure is not None


def test_update_stops_where_a_figure_is_gone(file: Path):
    earlier = file.read_text()
    better = [one for one in changed("explained_flips", 0) if one.name != "agreement"]
    new = Figure.exact("layer 'b'", "explained_flips", 1)
    result = run(file, *better, new, update=True)
    assert (result.updated, file.read_text()) == (False, earlier)
    assert "agreement of decisions: was 0.99, and is not there any more" in str(result.failure)
    # So does a whole layer.
    result = run(file, *(one for one in REACHED if one.group == OUTPUT), new, update=True)
    assert (result.updated, file.read_text()) == (False, earlier)
    assert result.failure is not None


def without_a_figure(content: dict[str, Any]) -> None:
    del content["verify"]["figures"][OUTPUT]["max_abs_error"]


def without_a_layer(content: dict[str, Any]) -> None:
    del content["verify"]["figures"]["layer 'a'"]


def looser(content: dict[str, Any]) -> None:
    content["verify"]["figures"][OUTPUT]["max_abs_error"] = 1.0


def more_slack(content: dict[str, Any]) -> None:
    content["slack"] = {"max_abs_error": {"factor": 1e6}}


def other_machine(content: dict[str, Any]) -> None:
    content["verify"]["machine"] = "another"


@pytest.mark.parametrize(
    "edit", [without_a_figure, without_a_layer, looser, more_slack, other_machine]
)
def test_edited_file_is_refused_until_it_is_updated(
    file: Path, edit: Callable[[dict[str, Any]], None]
):
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="was edited since it was written") as error:
        run(file, *REACHED)
    assert "--update-baseline accepts the edits" in str(error.value.hint)
    result = run(file, *REACHED, update=True)
    assert "it was edited by hand" in result.summary
    assert result.updated
    assert run(file, *REACHED).failure is None


def test_file_of_before_is_compared_and_gets_its_digest(file: Path):
    content = json.loads(file.read_text())
    del content["sha256"]
    file.write_text(json.dumps(content))
    result = run(file, *REACHED)
    assert result.failure is None
    assert "it has no digest, so an edit of it is not seen" in result.summary
    assert run(file, *REACHED, update=True).updated
    assert "digest" not in run(file, *REACHED).summary


def test_what_was_taken_out_by_hand_is_new(file: Path):
    content = json.loads(file.read_text())
    del content["verify"]["figures"][OUTPUT]["max_abs_error"]
    file.write_text(json.dumps(content))
    assert run(file, *changed("max_abs_error", 1e-3), update=True).updated
    assert run(file, *changed("max_abs_error", 1e-3)).failure is None


def test_better_figures_are_named(file: Path):
    result = run(file, *changed("explained_flips", 0))
    assert result.better == ("layer 'a': explained flips: 0, was 4, allowed at most 8.",)
    assert result.summary.endswith("--update-baseline would tighten it")


def test_slack_of_the_file_replaces_the_usual_one(file: Path):
    content = json.loads(file.read_text())
    content["slack"] = {"explained_flips": {"factor": 1, "plus": 0}}
    file.write_text(json.dumps(content))
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


def test_file_of_another_package_is_refused(file: Path):
    with pytest.raises(ConfigError, match=r"layer 'a' and 1 more; this run has output 'z'"):
        run(file, Figure.exact("all", "vector_sets", 3), Figure.exact("output 'z'", "elements", 1))


def test_missing_file_names_the_next_step(tmp_path: Path):
    with pytest.raises(ConfigError, match="no baseline file") as error:
        Ratchet.open(tmp_path / "none.json", "verify", update=False)
    assert "--update-baseline writes it" in str(error.value.hint)


def test_file_of_the_other_command_only_is_refused(file: Path):
    with pytest.raises(ConfigError, match="holds nothing of bench"):
        Ratchet.open(file, "bench", update=False)


def test_both_commands_share_a_file(file: Path):
    ratchet = Ratchet.open(file, "bench", update=True)
    assert ratchet is not None
    assert ratchet.judge([ratio(1, 1, 1)]).updated
    assert json.loads(file.read_text()).keys() == {*("schema_version", "verify", "bench", "sha256")}
    assert run(file, *REACHED).failure is None


def test_update_without_a_file_is_refused():
    assert Ratchet.open(None, "verify", update=False) is None
    with pytest.raises(ConfigError, match="without a baseline file"):
        Ratchet.open(None, "verify", update=True)


def test_directory_that_is_not_there_is_seen_before_anything_runs(tmp_path: Path):
    with pytest.raises(PackageError, match="cannot be written: there is no directory"):
        Ratchet.open(tmp_path / "none" / "baseline.json", "verify", update=True)


FIGURES = {"figures": {OUTPUT: {"elements": 1}}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not valid JSON"),
        ("<<<<<<< ours\n{}", "is not valid JSON"),
        ('{"a": 1, "a": 2}', "'a' is there twice"),
        ("[" * 100_000, "is not valid JSON"),
        ("[]", "it has no schema_version"),
        ('{"schema_version": 2}', "schema_version is 2, this moh-deploy reads 1"),
        ('{"schema_version": 1, "verfy": {}}', "verfy is not a known key"),
        (
            '{"schema_version": 1, "verify": {"figures": {}}}',
            "verify.figures is {}, expected an object of at least one group of figures",
        ),
        (
            '{"schema_version": 1, "verify": {"machine": "x"}}',
            "verify.figures is missing",
        ),
        ('{"schema_version": 1, "verify": 3}', "verify is 3, expected an object"),
        (
            '{"schema_version": 1, "bench": {"figures": {"a": {"ratio":'
            ' {"value": "1", "low": 1, "high": 3}}}}}',
            'a.ratio.value is "1", expected a finite number',
        ),
        (
            '{"schema_version": 1, "bench": {"figures": {"a": {"ratio": {"value": 1, "low": 1}}}}}',
            "a.ratio.high is missing",
        ),
        (
            '{"schema_version": 1, "verify": {"figures": {"a": {"p51": 1}}}}',
            "no figure 'p51', there are vector_sets",
        ),
        (
            '{"schema_version": 1, "verify": {"figures": {"a": {"elements": NaN}}}}',
            "a.elements is NaN, expected a finite number, or an object of such: value, low and",
        ),
        (
            '{"schema_version": 1, "verify": {"figures": {"a": {"elements": true}}}}',
            "verify.figures.a.elements is true, expected a finite number",
        ),
        (
            '{"schema_version": 1, "bench": {"figures": {"a": {"ratio":'
            ' {"value": 1, "low": 2, "high": 3}}}}}',
            "1.0 is not between",
        ),
        (
            json.dumps(
                {"schema_version": 1, "verify": FIGURES, "slack": {"ratio": {"factor": 0.5}}}
            ),
            "slack.ratio.factor is 0.5, expected a number of at least 1",
        ),
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
    content = {"schema_version": 1, "verify": {"figures": {OUTPUT: {name: value}}}}
    path.write_text(json.dumps(content))
    wrong = value["low"] if isinstance(value, dict) else value
    with pytest.raises(ConfigError) as error:
        Ratchet.open(path, "verify", update=True)
    assert error.value.message == (
        f"{path}: verify: figures.{OUTPUT}.{name} is {wrong:g}, expected {expected}."
    )


@pytest.mark.parametrize("name", ["score", "loss"])
def test_score_may_be_any_number(tmp_path: Path, name: str):
    path = tmp_path / "baseline.json"
    run(path, Figure.exact("metric", name, -2.5), update=True)
    assert run(path, Figure.exact("metric", name, -2.5)).failure is None


def test_every_slack_has_its_reason():
    assert all(kind.reason for kind in KINDS.values())
