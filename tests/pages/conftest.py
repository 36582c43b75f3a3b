from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.examples.conftest import digits_demo  # noqa: F401  (a fixture)
from tests.examples.digits_demo import DemoRun

if TYPE_CHECKING:
    from tests.pages.world import World


@pytest.fixture(scope="session")
def world(digits_demo: DemoRun, tmp_path_factory: pytest.TempPathFactory) -> World:  # noqa: F811
    from tests.pages.world import make_world  # and torch with it, which a push does not need here

    assert digits_demo.process.returncode == 0, digits_demo.process.stderr
    return make_world(tmp_path_factory.mktemp("world"), digits_demo)
