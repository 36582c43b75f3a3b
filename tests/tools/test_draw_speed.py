"""The chart in README is what its table says."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def draw_speed(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("draw_speed")


def test_chart_is_that_of_the_table(draw_speed):
    drawn = {theme: (ROOT / f"docs/speed-{theme}.svg").read_text() for theme in ("light", "dark")}
    readme = (ROOT / "README.md").read_text()
    assert drawn == draw_speed.pictures(readme), "python tools/draw_speed.py README.md docs/speed"


def test_bar_is_as_long_as_its_ratio(draw_speed):
    table = "| model | a | b |\n|---|---|---|\n| M | 2.50x | 0.50x |\n"
    light = draw_speed.pictures(f"## Speed\n\n{table}\n## Next\n| x | 9x | 9x |\n")["light"]
    assert light.count('width="175"') == light.count('width="35"') == light.count(">2.50x<") == 1
    assert "9x" not in light
