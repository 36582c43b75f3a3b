from pathlib import Path

import pytest

from tests.cli.run_cli import Cli
from tests.handmade_package import write_package


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return write_package(tmp_path / "package").root
