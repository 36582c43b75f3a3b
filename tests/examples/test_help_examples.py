"""The example of each `--help`, run where the digits suffice for it."""

import shutil
from pathlib import Path

import click
import numpy as np
import pytest
import torch

from moh_deploy.cli import main
from moh_deploy.cli.command import Command
from moh_deploy.system.npz import write_npz
from tests.cli.run_cli import Cli
from tests.examples.digits_demo import DIGITS, DemoRun
from tests.help_examples import example_lines
from tests.nightly import nightly

pytestmark = nightly

# In the order of a user's day: some read what others wrote. Those of `others` need something else:
# TensorRT, a language model, a server that goes on, a plan's prices.
DAY = ("export", "inspect", "verify", "run", "bench", "tune", "precision", "prune", "inline")
DAY = (*DAY, "probe", "bisect", "compare", "profile", "bundle", "drill", "doctor")
OTHERS = {"build", "generate", "serve", "watch", "cost"}
# The answer may be no: the model was trained for seconds, and the machine may be busy.
OPEN = {"verify", "bench", "compare", "drill"}


def test_examples_of_help_run(
    digits_demo: DemoRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    assert digits_demo.process.returncode == 0, digits_demo.process.stderr
    top = click.Context(main)
    names = {*DAY, *OTHERS}
    rest = [name for name in main.list_commands(top) if name not in names]
    shutil.copy(DIGITS / "model.py", tmp_path)
    with np.load(digits_demo.work_dir / "held-out.npz") as held_out:
        write_npz(tmp_path / "val.npz", {"images": held_out["images"]})
    shutil.copy(digits_demo.work_dir / "labels.npy", tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    from model import DigitsViT

    model = DigitsViT()
    model.load_state_dict(torch.load(digits_demo.checkpoint)["model"])
    torch.save(model, "model.pt")
    Path("build").mkdir()
    for name in (*DAY, *rest):
        command = main.get_command(top, name)
        assert isinstance(command, Command)
        for _, *arguments in example_lines(command):
            ended = Cli(capsys)(*arguments)
            allowed = (0, 1) if name in OPEN else (0,)
            assert ended.exit_code in allowed, (arguments, ended.err)
