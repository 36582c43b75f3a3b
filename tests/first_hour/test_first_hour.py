"""A newcomer's first hour: README and quickstart from the top, on a fresh environment."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kept_builds import ROOT
from tests.nightly import nightly
from tests.pages.conftest import digits_demo, world  # noqa: F401  (fixtures)
from tests.pages.session import Session

if TYPE_CHECKING:
    from tests.pages.world import World

PAGES = (ROOT / "README.md", ROOT / "docs" / "quickstart.md")


@nightly
def test_first_hour_goes_as_it_is_written(
    world: World,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    from tests.pages.world import CODE, MORE, NAMES

    checkout, fresh = tmp_path / "moh-deploy", tmp_path / "venv"
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for name in listed.stdout.splitlines():
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, checkout / name)
    mine = world.own["images"]
    world.lay_out_models(checkout, mine)
    shutil.copytree(mine.folder / "package", checkout / "build" / "moh")
    MORE["quickstart.md"](checkout)
    venv.create(fresh, with_pip=True)
    # The reader's own package is installed: the tests' one must not be found in its place.
    for file in CODE:
        shutil.copy(file, next(fresh.glob("lib/python3*/site-packages")))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with Session(checkout, fresh / "bin", may={"installs packages"}) as session:
        assert "`make demo` sets everything up" in PAGES[0].read_text()
        code, printed = session.shell(f"make demo PYTHON={sys.executable}")
        assert code == 0, printed[-4000:]
        session.run_page(PAGES[0])
        assert session.python(NAMES["quickstart.md"]) == (0, "")
        session.run_page(PAGES[1])
    assert len(session.steps) >= 30
