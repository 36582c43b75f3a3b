"""The notebook runs from top to bottom, as `jupyter execute` runs it."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kept_builds import ROOT
from tests.nightly import nightly

NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"


def outputs(notebook: Path) -> Iterator[str]:
    for cell in json.loads(notebook.read_text())["cells"]:
        for output in cell.get("outputs", ()):
            text = output.get("text") or output.get("data", {}).get("text/markdown", "")
            yield "".join(text)


def check(notebook: Path) -> None:
    text = "\n".join(outputs(notebook))
    assert "same classes: True" in text
    assert "EQUAL to the original on 3 runs" in text
    assert "2 of 2 comparisons agree" in text
    assert "3 MoH layers: attention on a kernel" in text


def test_notebook_shows_what_it_printed_and_no_place_of_a_machine():
    check(NOTEBOOK)
    text = NOTEBOOK.read_text()
    assert '"output_type": "error"' not in text
    assert str(Path.home()) not in text
    assert "/work" not in text


@nightly
def test_notebook_runs(tmp_path: Path):
    if (
        importlib.util.find_spec("nbclient") is None
        or importlib.util.find_spec("ipykernel") is None
    ):
        pytest.skip("nbclient is not installed")
    examples = tmp_path / "examples"
    shutil.copytree(ROOT / "examples" / "digits", examples / "digits")
    cells = json.loads(NOTEBOOK.read_text())
    for cell in cells["cells"]:
        cell.pop("execution_count", None)
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
    (examples / NOTEBOOK.name).write_text(json.dumps(cells))
    ended = subprocess.run(
        [sys.executable, "-c", "from nbclient.cli import main; main()", "--inplace", NOTEBOOK.name],
        cwd=examples,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    check(examples / NOTEBOOK.name)
    assert "as fast as dense" in "\n".join(outputs(examples / NOTEBOOK.name))
    assert (tmp_path / "build" / "quickstart" / "manifest.json").is_file()
