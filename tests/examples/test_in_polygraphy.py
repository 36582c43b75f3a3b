import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from moh_deploy.system.bounded_file import sha256_of
from tests.cuda.trt import builds
from tests.fakes import Fakes, fakes
from tests.handmade_package import vectors, write_package
from tests.nightly import nightly
from tests.runtime.tensorrt.engines import MANIFEST, simulate_gpu, write_engine

__all__ = ["fakes"]

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "in_polygraphy.py"


pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("polygraphy") is None,
    reason="Polygraphy is not installed: pip install 'moh-deploy[polygraphy]'",
)


def _run(*arguments: object) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH", ""), str(ROOT)]))
    return subprocess.run(
        [sys.executable, EXAMPLE, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )


@nightly
def test_example_runs_on_a_package(tmp_path: Path):
    root = write_package(tmp_path / "package", sets=(vectors(), vectors(batch=3))).root
    done = _run(root)
    assert done.returncode == 0, done.stderr
    assert "Completed 2 iteration(s)" in done.stdout


@nightly
@pytest.mark.parametrize("scale", [1.0, 1.01])
def test_example_compares_an_engine_with_the_recorded_reference(
    fakes: Fakes, tmp_path: Path, scale: float
):
    """On a runtime and a driver that stand for TensorRT and a GPU."""
    simulate_gpu(fakes)
    (fakes.folder / "libcuda.so.1").unlink()
    driver = builds.build("driver", [builds.HERE / "driver.cc"])
    (fakes.folder / "libcuda.so.1").symlink_to(driver)
    # Computes y = x; the engine has no profile for the second run.
    sets = (vectors(with_layer=False), vectors(batch=2, seq=50, with_layer=False))
    package = write_package(tmp_path / "package", with_layer=False, sets=sets)
    sha256 = sha256_of(package.root / "manifest.json")
    manifest = replace(MANIFEST, layers=(), package_sha256=sha256)
    engine = write_engine(tmp_path / "engine", manifest, scale=scale)
    done = _run(engine, package.root)
    assert done.returncode == (scale != 1), done.stdout + done.stderr
    assert "GPU: 0.0000 ms for x [" in done.stdout
    assert "left out: " in done.stdout
    assert "Completed 1 iteration(s)" in done.stdout
    assert "PyTorch, recorded" in done.stdout
