#!/usr/bin/env python3
"""Draw the table of speeds in README.md, as an SVG picture for light and dark pages.

    draw_speed.py README.md docs/speed       writes docs/speed-light.svg and docs/speed-dark.svg

A bar for each ratio of the first table behind "## Speed", and a line at 1x.
"""

import re
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

LEFT, ONE, BAR, GAP, TOP = 300, 70, 14, 14, 34  # ONE: pixels of 1x
COLOURS = {
    "light": {"text": "#24292f", "line": "#57606a", "first": "#8250df", "second": "#0969da"},
    "dark": {"text": "#e6edf3", "line": "#8b949e", "first": "#a371f7", "second": "#58a6ff"},
}


def main(readme: str, stem: str) -> None:
    for theme, picture in pictures(Path(readme).read_text()).items():
        Path(f"{stem}-{theme}.svg").write_text(picture)


def pictures(page: str) -> dict[str, str]:
    """Return the picture of each theme."""
    header, _, *rows = re.findall(
        r"^\|.*\|$", page.partition("## Speed")[2].partition("##")[0], re.M
    )
    _, *names = _cells(header)
    speeds = {label: ratios for label, *ratios in map(_cells, rows)}  # "4.85x", ...
    return {
        theme: "\n".join(_picture(names, speeds, colours)) + "\n"
        for theme, colours in COLOURS.items()
    }


def _cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


def _number(ratio: str) -> float:
    return float(ratio.rstrip("x"))


def _picture(
    names: list[str], speeds: dict[str, list[str]], colours: dict[str, str]
) -> Iterator[str]:
    text, bars = colours["text"], (colours["first"], colours["second"])
    height_of_model = len(names) * BAR + GAP
    height = TOP + len(speeds) * height_of_model + 8
    width = LEFT + ONE * max(map(_number, chain(*speeds.values()))) + 60
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height}"'
        ' font-family="system-ui, sans-serif" font-size="13">'
    )
    for index, (name, colour) in enumerate(zip(names, bars, strict=True)):
        x = LEFT + index * 170
        yield f'<rect x="{x}" y="9" width="12" height="12" fill="{colour}"/>'
        yield _text(x + 18, 20, text, name)
    for model, (label, ratios) in enumerate(speeds.items()):
        top = TOP + model * height_of_model
        middle = top + len(names) * BAR / 2 + 5
        yield _text(LEFT - 10, middle, text, label, anchor="end")
        for index, (ratio, colour) in enumerate(zip(ratios, bars, strict=True)):
            y, length = top + index * BAR, ONE * _number(ratio)
            yield (
                f'<rect x="{LEFT}" y="{y}" width="{length:g}" height="{BAR - 2}" fill="{colour}"/>'
            )
            yield _text(LEFT + length + 6, y + 10, text, ratio, size=12)
    x, bottom = LEFT + ONE, height - 8
    yield f'<path d="M{x} {TOP - 4}V{bottom}" stroke="{colours["line"]}" stroke-dasharray="3 3"/>'
    yield "</svg>"


def _text(
    x: float, y: float, colour: str, text: str, *, anchor: str = "start", size: int = 13
) -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" fill="{colour}" text-anchor="{anchor}" font-size="{size}">'
        f"{text}</text>"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
