import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.handmade_package import vectors, write_package
from tests.nightly import nightly

EXAMPLE = Path(__file__).parents[2] / "examples" / "in_polygraphy.py"


@nightly
@pytest.mark.skipif(
    importlib.util.find_spec("polygraphy") is None,
    reason="Polygraphy is not installed: pip install 'moh-deploy[polygraphy]'",
)
def test_example_runs_on_a_package(tmp_path: Path):
    root = write_package(tmp_path / "package", sets=(vectors(), vectors(batch=3))).root
    done = subprocess.run(
        [sys.executable, EXAMPLE, root], capture_output=True, text=True, cwd=EXAMPLE.parents[1]
    )
    assert done.returncode == 0, done.stderr
    assert "Completed 2 iteration(s)" in done.stdout
