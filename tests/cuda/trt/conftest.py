from pathlib import Path

import pytest

from tests.cuda.trt import builds
from tests.cuda.trt.fakes import Kernels
from tests.cuda.trt.host_plugin import Harness


@pytest.fixture(scope="session")
def fake_library() -> Path:
    return builds.plugin_on_fakes()


@pytest.fixture(scope="session")
def _loaded(fake_library: Path) -> Harness:
    return Harness(builds.harness(), fake_library)


@pytest.fixture
def harness(_loaded: Harness) -> Harness:
    """The plugin library over kernels that are answered for, with an empty log."""
    _loaded.log()
    return _loaded


@pytest.fixture
def kernels(fake_library: Path) -> Kernels:
    """What the kernels answer, for one test."""
    kernels = Kernels()
    kernels.install(fake_library)
    return kernels
