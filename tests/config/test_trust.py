"""Code and pickles that a file names are refused before anything is imported."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from tests.cli.run_cli import Cli
from tests.handmade_package import write_package

PLAN = {
    "goal": "Run code of the plan's author",
    "reference": "one",
    "arms": {"one": {"path": "package"}, "two": {"checkpoint": {"file": "model.pt"}}},
    "latency": {"at_least": 0.1},
}
SCORED = {"inputs": ["x.npz"], "labels": "labels.npy"}
CONFIGS = {
    "factory": ({"factory": "stranger:build"}, "model.factory is 'stranger:build'"),
    "installed": ({"factory": "timm:create_model"}, "model.factory is 'timm:create_model'"),
    "code_dirs": ({"code_dirs": ["."]}, "model.code_dirs is ['"),
}
# Key paths of a plan with the values, the option that is asked for, and the key in the message.
CHECKPOINT = "arms.two.checkpoint"
PLANS = {
    "metric": ("quality.metric", "stranger:score", "code", "quality.metric is 'stranger:score'"),
    "second_metric": ("quality.1.metric", "stranger:score", "code", "quality.1.metric is 'stran"),
    "metric_dirs": ("code_dirs", ["."], "code", "code_dirs is ['.']"),
    "factory": (f"{CHECKPOINT}.factory", "stranger:build", "code", f"{CHECKPOINT}.factory is"),
    "code_dirs": (f"{CHECKPOINT}.code_dirs", ["."], "code", f"{CHECKPOINT}.code_dirs is ['.']"),
    "pickle": (f"{CHECKPOINT}.trust_pickle", True, "pickle", f"{CHECKPOINT}.trust_pickle is True"),
    "config": (f"{CHECKPOINT}.config", "export.yaml", "code", "export.yaml: model.factory is"),
}


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory from a stranger, which is also on Python's path: its module tells that it ran."""
    (tmp_path / "stranger.py").write_text("raise AssertionError('code of a stranger ran')\n")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "model.pt")
    write_package(tmp_path / "package")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("stranger", None)


def write_config(folder: Path, **model: object) -> str:
    (folder / "export.yaml").write_text(yaml.safe_dump({"model": model}))
    return "export.yaml"


def write_plan(folder: Path, key: str, value: object) -> str:
    plan = yaml.safe_load(yaml.safe_dump(PLAN))
    goal = {"may_lose": 0.01, "better": "higher", "metric": value}
    if key.startswith("quality"):
        top_1 = {"metric": "top-1", "may_lose": 0.01}
        plan |= {**SCORED, "quality": [top_1, goal] if ".1." in key else goal}
    elif key.startswith("arms"):
        plan["arms"]["two"]["checkpoint"][key.rpartition(".")[2]] = value
    else:
        plan[key] = value
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    return "plan.yaml"


COMMANDS = {
    "export": ("export", "model.pt", "-o", "out"),
    "verify": ("verify", "package", "--against", "model.pt"),
    "bench": ("bench", "package", "--baseline", "eager", "--checkpoint", "model.pt"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("case", CONFIGS)
def test_configuration_that_names_code_is_refused(
    folder: Path, cli: Cli, command: str, case: str
) -> None:
    model, words = CONFIGS[case]
    refused = cli(*COMMANDS[command], "--config", write_config(folder, **model))
    assert (refused.exit_code, "stranger" in sys.modules) == (2, False)
    assert f"export.yaml: {words}" in refused.err
    assert "add --trust-code (in Python: trust_code=True)" in refused.err
    assert not (folder / "out").exists()


def test_setting_counts_as_the_configuration(folder: Path, cli: Cli) -> None:
    refused = cli("export", "model.pt", "-o", "out", "--set", "model.factory=stranger:build")
    assert refused.exit_code == 2
    assert "--set: model.factory is 'stranger:build'" in refused.err


@pytest.mark.parametrize("case", PLANS)
def test_plan_that_names_code_or_pickles_is_refused(folder: Path, cli: Cli, case: str) -> None:
    key, value, trust, words = PLANS[case]
    write_config(folder, factory="stranger:build")
    plan = write_plan(folder, key, value)
    refused = cli("compare", "--plan", plan)
    assert (refused.exit_code, "stranger" in sys.modules) == (2, False)
    assert words in refused.err
    assert f"add --trust-{trust} (in Python: trust_{trust}=True)" in refused.err


@pytest.mark.parametrize(
    "options",
    [
        ("--factory", "stranger:build"),
        ("--config", "export.yaml", "--trust-code"),
        ("--config", "kwargs.yaml", "--factory", "stranger:build"),
    ],
    ids=["own_word", "trusted", "own_factory"],
)
def test_code_that_the_user_named_or_trusts_is_run(
    folder: Path, cli: Cli, options: tuple[str, ...]
) -> None:
    write_config(folder, factory="stranger:build")
    (folder / "kwargs.yaml").write_text("model: {kwargs: {depth: 2}}")
    ran = cli("export", "model.pt", "-o", "out", *options)
    assert "AssertionError: code of a stranger ran" in ran.err


@pytest.mark.parametrize("case", ["factory", "config"])
def test_plan_that_the_user_trusts_runs_its_code(folder: Path, cli: Cli, case: str) -> None:
    key, value, _, _ = PLANS[case]
    write_config(folder, factory="stranger:build")
    ran = cli("compare", "--plan", write_plan(folder, key, value), "--trust-code")
    assert "AssertionError: code of a stranger ran" in ran.err


def test_plan_that_the_user_trusts_is_unpickled(folder: Path, cli: Cli) -> None:
    torch.save(torch.nn.Linear(2, 2), folder / "model.pt")
    plan = write_plan(folder, f"{CHECKPOINT}.trust_pickle", False)
    assert "pass --trust-pickle" in cli("compare", "--plan", plan).err
    assert "--trust-pickle" not in cli("compare", "--plan", plan, "--trust-pickle").err
