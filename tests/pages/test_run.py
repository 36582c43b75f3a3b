"""Each page's blocks run in their order, in one directory, and print what the page says."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.nightly import nightly
from tests.pages.blocks import PAGES
from tests.pages.session import Session

if TYPE_CHECKING:
    from tests.pages.world import World

NEEDS = {
    "onnxruntime_genai": ("onnxruntime-genai", {"language-models.md", "serve-with-genai.md"}),
    "openvino": ("OpenVINO", {"precision.md", "runtimes.md", "tune.md"}),
    "tokenizers": ("tokenizers", {"huggingface.md", "language-models.md", "quickstart.md"}),
    "transformers": ("transformers", {"huggingface.md", "opening-packages.md"}),
}
"""Packages that pages take for installed."""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory, warm_interpreter: Path) -> Path:
    """The folder of what a page calls: `moh-deploy`, `python`, and what it may not call here."""
    folder = tmp_path_factory.mktemp("bin")
    for name, arguments in (("moh-deploy", "-m moh_deploy"), ("python", ""), ("python3", "")):
        program = folder / name
        program.write_text(
            # A drill kills the children of its server: those of a warm process are another's.
            f'#!/bin/sh\n[ "$1" = drill ] && exec "{sys.executable}" {arguments} "$@"\n'
            f'exec "{warm_interpreter}" {arguments} "$@"\n'
        )
        program.chmod(0o755)
    for name in ("apt-get", "docker", "npm", "pip", "sudo"):
        # What a mark forgot must not change the machine.
        program = folder / name
        program.write_text("#!/bin/sh\necho $0 is not run here; exit 9\n")
        program.chmod(0o755)
    return folder


@nightly
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_runs_as_it_is_written(
    page: Path, world: World, programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from tests.pages.world import NAMES

    for package, (name, pages) in NEEDS.items():
        if page.name in pages and importlib.util.find_spec(package) is None:
            pytest.skip(f"{name} is not installed")
    if "$ promtool " in page.read_text() and shutil.which("promtool") is None:
        pytest.skip("promtool is not installed")
    world.lay_out(tmp_path, page)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "bin").symlink_to(programs)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (tmp_path, *sys.path))))
    with Session(tmp_path, programs) as session:
        if page.name in NAMES:
            assert session.python(NAMES[page.name]) == (0, "")
        session.run_page(page)
