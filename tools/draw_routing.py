#!/usr/bin/env python3
"""Draw the heads that a package's routers choose, as an SVG picture for light and dark pages.

    draw_routing.py PACKAGE docs/routing     writes docs/routing-light.svg and docs/routing-dark.svg

The package takes images, as that of `make demo` does. Drawn is the first recorded run's first
image: a row for each token, a column for each head, filled by the gate's size.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

CELL, GAP, TOP = 14, 40, 34
COLOURS = {
    "light": {"text": "#24292f", "line": "#d0d7de", "shared": "#8250df", "routed": "#0969da"},
    "dark": {"text": "#e6edf3", "line": "#30363d", "shared": "#a371f7", "routed": "#58a6ff"},
}


def main(package: str, stem: str) -> None:
    import moh_deploy.package

    opened = moh_deploy.package.OnnxPackage.open(Path(package))
    with np.load(Path(package) / "vectors.npz") as vectors:
        image = vectors[f"0/inputs/{opened.manifest.inputs[0].name}"][0, 0]
        gates = [vectors[f"0/gates/{i}"][0] for i in range(len(opened.manifest.layers))]
    shared = [layer.num_shared_heads or 0 for layer in opened.manifest.layers]
    for theme, colours in COLOURS.items():
        path = Path(f"{stem}-{theme}.svg")
        path.write_text("\n".join(_picture(image, gates, shared, colours)) + "\n")


def _picture(
    image: np.ndarray, gates: list[np.ndarray], shared: list[int], colours: dict[str, str]
) -> Iterator[str]:
    tokens = len(gates[0])
    side = tokens * CELL
    width = side + sum(GAP + layer.shape[1] * CELL for layer in gates)
    height = TOP + side + 30
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        ' font-family="system-ui, sans-serif" font-size="13">'
    )
    yield f'<g fill="{colours["text"]}">{_text(side / 2, 20, "image")}'
    left = side + GAP
    for index, layer in enumerate(gates):
        yield _text(left + layer.shape[1] * CELL / 2, 20, f"layer {index + 1}")
        left += layer.shape[1] * CELL + GAP
    yield f"{_text(width / 2, height - 8, 'rows: 16 patches; columns: 8 heads, 2 shared')}</g>"
    pixel = side / len(image)
    shades = (image - image.min()) / np.ptp(image)
    for (row, column), shade in np.ndenumerate(shades):
        yield _cell(
            column * pixel, TOP + row * pixel, pixel, colours["text"], shade, colours["line"]
        )
    left = side + GAP
    for layer, first_routed in zip(gates, shared, strict=True):
        for (token, head), gate in np.ndenumerate(layer / layer.max()):
            kind = "shared" if head < first_routed else "routed"
            x, y = left + head * CELL, TOP + token * CELL
            yield _cell(
                x, y, CELL, colours[kind], 0.25 + 0.75 * gate if gate else 0, colours["line"]
            )
        left += layer.shape[1] * CELL + GAP
    yield "</svg>"


def _text(x: float, y: float, text: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="middle">{text}</text>'


def _cell(x: float, y: float, size: float, colour: str, opacity: float, line: str) -> str:
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{size:g}" height="{size:g}" fill="{colour}"'
        f' fill-opacity="{opacity:.2f}" stroke="{line}" stroke-width="0.5"/>'
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
