from dataclasses import replace

import pytest
from rich.console import Console

from moh_deploy.report.document import Share, Table
from moh_deploy.report.terminal import TerminalTable, fitting_widths

TITLES = ("layer", "runs as", "#unexplained flips", "#attention", "judged by", "verdict")
ROW = ("blocks.0.a", "kernel (projections: dense)", 0, Share(0.25), "choices", "equal [b]")
TABLE = Table("MoH layers", TITLES, [ROW, ("blocks.1.a", *ROW[1:])])
WORDS = ("blocks.1.a", "kernel", "(projections:", "unexplained", "attention", "[b]", "25.0")


def shown(table: Table, width: int) -> list[str]:
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(TerminalTable(table))
    return captured.get().splitlines()


@pytest.mark.parametrize("width", [160, 80, 60])
def test_no_word_is_cut_and_no_line_is_too_long(width: int):
    lines = shown(TABLE, width)
    assert all(any(word in line for line in lines) for word in WORDS)
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("MoH layers")


def test_table_with_room_has_a_line_for_each_row():
    assert (
        sum("blocks." in line and "(projections: dense)" in line for line in shown(TABLE, 160)) == 2
    )


def test_row_stands_alone_where_words_do_not_fit_beside_each_other():
    lines = [line.split() for line in shown(TABLE, 60)]
    assert ["layer", "blocks.1.a"] in lines
    assert ["runs", "as", "kernel", "(projections:", "dense)"] in lines
    assert lines.count(["unexplained", "flips", "0"]) == 2


def test_path_is_folded_within_its_table():
    lines = shown(Table("", ("what", "found"), [("library", "/somewhere" * 12)]), 80)
    assert max(map(len, lines)) <= 80
    assert "┏" in lines[0]


@pytest.mark.parametrize(
    ("lines", "words", "room", "expected"),
    [
        ([9, 30], [4, 6], 20, [9, 11]),
        ([30, 30], [3, 7], 13, [5, 8]),
        ([30, 30], [6, 7], 13, [6, 7]),
        ([30, 30], [12, 7], 18, None),
        ([40, 40], [40, 7], 41, [33, 8]),
        ([40, 40], [40, 7], 21, [14, 7]),
    ],
)
def test_room_is_shared_behind_the_longest_words(lines, words, room, expected):
    assert fitting_widths(lines, words, room) == expected


def test_rows_that_a_terminal_leaves_out_are_counted_and_verbose_has_them():
    rows = [(f"blocks.{index}.a", index) for index in range(9)]
    table = Table("layers", ("layer", "#n"), rows, most_rows=4)
    lines = shown(table, 80)
    assert sum("blocks." in line for line in lines) == 4
    assert lines[-1] == "... and 5 more: --verbose"
    assert "more" not in "".join(shown(replace(table, rows=rows[:4]), 80))
    console = Console(width=80, color_system=None)
    with console.capture() as captured:
        console.print(TerminalTable(table, "verbose"))
    assert "blocks.8.a" in captured.get()
    assert "more" not in captured.get()
