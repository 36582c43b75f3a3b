"""docs/architecture.md names the folders that there are, and no others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAP = ROOT / "docs" / "architecture.md"


def _mapped() -> set[str]:
    """Return the folders of the map, read by their indentation."""
    text = MAP.read_text().split("## The map")[1].split("\n## ")[0]
    folders: set[str] = set()
    above: list[tuple[int, str]] = []
    for line in text.splitlines():
        found = re.match(r" {4,}((?:[\w/]+/(?:  )?)+)", line)
        if found is None:
            continue
        indent = len(line) - len(line.lstrip())
        above = [(column, path) for column, path in above if column < indent]
        for name in found[1].split():
            path = "/".join([*(path for _, path in above[-1:]), name.rstrip("/")])
            folders.add(path)
        above.append((indent, path))
    return folders


def _packages() -> set[str]:
    return {str(path.parent.relative_to(ROOT)) for path in (ROOT / "moh_deploy").rglob("*.py")}


def test_every_package_is_on_the_map():
    assert _packages() - _mapped() == set()


@pytest.mark.parametrize("folder", sorted(_mapped()))
def test_folder_of_the_map_exists(folder: str):
    assert (ROOT / folder).is_dir()


def test_files_named_in_the_tables_exist():
    rows = [line for line in MAP.read_text().splitlines() if line.startswith("|")]
    named = re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.(?:py|md))`", "\n".join(rows))
    assert named
    missing = [
        one
        for one in named
        if not any((ROOT / at / one).is_file() for at in ("", "moh_deploy", "docs"))
    ]
    assert missing == []
