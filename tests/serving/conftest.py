"""What many tests of serving read: a small package, and its own answers."""

from collections.abc import Iterator

import pytest

from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import Runner, Variant
from moh_deploy.runtime.open_runner import open_runner
from tests.handmade_package import write_package


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> OnnxPackage:
    return write_package(tmp_path_factory.mktemp("handmade") / "package")


@pytest.fixture(scope="session")
def runner(package: OnnxPackage) -> Iterator[Runner]:
    with open_runner(package, Variant(threads=1)) as opened:
        yield opened
