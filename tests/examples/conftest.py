from __future__ import annotations

import pytest

from tests.examples.digits_demo import DemoRun, run_demo


@pytest.fixture(scope="session")
def digits_demo(tmp_path_factory: pytest.TempPathFactory) -> DemoRun:
    return run_demo(tmp_path_factory.mktemp("digits"))
