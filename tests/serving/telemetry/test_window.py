"""Counts of single requests, in a file."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from moh_deploy.errors import ConfigError
from moh_deploy.serving.telemetry import routing
from moh_deploy.serving.telemetry.routing import (
    CountedLayer,
    CountLayout,
    RecordedWindow,
    WindowRecorder,
    read_window,
)
from moh_deploy.system.npz import Array, write_npz

LAYOUT = CountLayout((CountedLayer("a", 4, 1, True), CountedLayer("b", 2, None, False)))


def recorder(*runs: int) -> WindowRecorder:
    """A recorder that saw runs of so many requests."""
    found = WindowRecorder(LAYOUT, "d1")
    for size in runs:
        rows = np.arange(size * LAYOUT.width, dtype=np.float64).reshape(size, -1)
        found.add(rows, size)
    return found


def test_dump_is_read_as_it_was_kept(tmp_path: Path):
    kept = recorder(2, 1).recorded()
    kept.write(tmp_path / "dump.npz")
    found = read_window(tmp_path / "dump.npz")
    assert found.about == kept.about
    assert found.layout == LAYOUT
    np.testing.assert_array_equal(found.rows, kept.rows)
    np.testing.assert_array_equal(found.requests, [1, 1, 1])
    np.testing.assert_array_equal(found.seconds, kept.seconds)


def test_row_of_several_requests_is_kept_as_such():
    found = recorder(2)
    found.add(np.ones((1, LAYOUT.width)), 3)
    assert found.recorded().requests.tolist() == [1, 1, 3]


def test_nothing_is_kept_after_the_stop():
    found = recorder(2)
    found.stop()
    found.add(np.ones((1, LAYOUT.width)), 1)
    assert len(found.recorded().rows) == 2


def test_full_window_stops_and_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(routing, "MOST_BYTES", 4 * 3 * LAYOUT.width)
    kept = recorder(2, 1, 1).recorded()
    assert len(kept.rows) == 3
    assert kept.about.is_cut


def _without(name: str) -> Callable[[dict[str, Array]], None]:
    def change(arrays: dict[str, Array]) -> None:
        del arrays[name]

    return change


def _with(**values: Array) -> Callable[[dict[str, Array]], None]:
    return lambda arrays: arrays.update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("rows"), "no member 'rows'"),
        (_with(about=np.zeros(3)), "expected a text"),
        (_with(about=np.array("{")), "not valid JSON"),
        (
            _with(about=np.array('{"digest": "d", "layers": 3}')),
            "key 'layers': Input should be a valid array",
        ),
        (
            _with(about=np.array('{"digest": "d", "layers": [], "format_version": 9}')),
            "of format version 9, expected 1",
        ),
        (_with(requests=np.ones(2, np.int64)), "contradicts itself"),
        (_with(rows=np.zeros((3, 4), np.float32)), "contradicts itself"),
        (
            _with(rows=np.full((3, LAYOUT.width), np.nan, np.float32)),
            "no numbers, negative or huge",
        ),
        (_with(rows=np.full((3, LAYOUT.width), -1, np.float32)), "no numbers, negative or huge"),
        (_with(rows=np.zeros((3, LAYOUT.width), "S1")), "contradicts itself"),
        (_with(requests=np.array(3)), "contradicts itself"),
        (_with(requests=np.array([1, 0, 1])), "a row of no request"),
        (_with(seconds=np.full(3, np.inf)), "no numbers, negative or huge"),
    ],
)
def test_file_that_is_no_dump_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Array]], None], message: str
):
    arrays = recorder(3).recorded().arrays()
    change(arrays)
    write_npz(tmp_path / "dump.npz", arrays)
    with pytest.raises(ConfigError, match=message):
        read_window(tmp_path / "dump.npz")


def test_layer_without_heads_is_refused(tmp_path: Path):
    kept = RecordedWindow(
        routing.WindowAbout("d", (CountedLayer("a", 0, None, False),)),
        np.zeros((0, 16)),
        np.zeros(0, np.int64),
        np.zeros(0),
    )
    kept.write(tmp_path / "dump.npz")
    with pytest.raises(ConfigError, match="num_heads"):
        read_window(tmp_path / "dump.npz")
