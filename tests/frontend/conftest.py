"""Loading a model changes sys.path and sys.modules for good: undo it after each test."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.frontend.checkpoints import write_net


@pytest.fixture(autouse=True)
def _forget_user_code() -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in [n for n in sys.modules if n not in modules and n.startswith("user_")]:
        del sys.modules[name]


@pytest.fixture
def code_dir(tmp_path: Path) -> Path:
    """A directory with the user's module `user_net`."""
    return write_net(tmp_path / "code")
