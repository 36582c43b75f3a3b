"""The columns of a row of counts."""

from __future__ import annotations

from moh_deploy.serving.telemetry.routing import MARGIN_EDGES, CountedLayer, CountLayout


def test_columns_of_all_layers_fill_a_row_once():
    layers = (CountedLayer("a", 4, 1, True), CountedLayer("b", 2, None, False))
    layout = CountLayout(layers)
    taken: list[int] = []
    for one in layout.columns:
        taken += [one.tokens, one.nonfinite, one.margin_sum]
        for part in (one.on, one.mass, one.margins):
            taken += range(part.start, part.stop)
        assert list(range(one.all.start, one.all.stop)) == taken[-(one.all.stop - one.tokens) :]
    assert taken == list(range(layout.width))
    assert layout.width == sum(3 + 2 * one.num_heads + len(MARGIN_EDGES) for one in layers)


def test_model_without_layers_has_no_columns():
    assert CountLayout(()).width == 0
