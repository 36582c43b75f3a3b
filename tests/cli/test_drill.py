from __future__ import annotations

import json
from pathlib import Path

from tests.cli.run_cli import Cli
from tests.handmade_package import write_package


def test_the_command_prints_json_and_writes_a_page(cli: Cli, tmp_path: Path):
    package = write_package(tmp_path / "package")
    shown = cli(
        "drill", str(package.root), "--in-process", "--fault", "nan", "--seconds", "300ms",
        "--html", str(tmp_path / "page.html"), "--json",
    )  # fmt: skip
    assert shown.exit_code == 0
    said = json.loads(shown.out)
    assert said["passed"]
    assert said["faults"][0]["wrong"] == 0
    page = (tmp_path / "page.html").read_text()
    assert "HELD" in page
    assert "answered by" in page
