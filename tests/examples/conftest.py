import pickle
from pathlib import Path

import pytest
from filelock import FileLock

from tests.examples.digits_demo import DemoRun, run_demo


@pytest.fixture(scope="session")
def digits_demo(tmp_path_factory, worker_id: str, warm_interpreter: Path) -> DemoRun:
    """One run for all processes of pytest: those that want it wait for the one that makes it."""
    own = tmp_path_factory.getbasetemp()
    shared = own if worker_id == "master" else own.parent
    with FileLock(shared / "digits.lock"):
        return _run_once(shared / "digits", warm_interpreter)


def _run_once(folder: Path, python: Path) -> DemoRun:
    kept = folder / "demo-run.pickle"
    if kept.exists():
        run: DemoRun = pickle.loads(kept.read_bytes())
        return run
    folder.mkdir()
    run = run_demo(folder, python)
    kept.write_bytes(pickle.dumps(run))
    return run
