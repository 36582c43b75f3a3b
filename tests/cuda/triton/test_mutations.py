"""Bugs planted in Triton's kernel are caught by the cases."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cuda.libraries import Emulator
from tests.cuda.mutations.mutation import CRASHED, DAMAGED, WRONG
from tests.cuda.triton.child import run_cases
from tests.cuda.triton.codes import SOURCES
from tests.nightly import nightly


@dataclass(frozen=True)
class Bug:
    """A mistake that somebody could make in attention.py.

    Attributes:
        options: Of `run_cases`: the cases that notice.
        symptom: A regular expression: what the run says.
    """

    name: str
    before: str
    after: str
    options: tuple[str, ...] = ("--sets", "contract", "tiles")
    symptom: str = WRONG

    def __str__(self) -> str:
        return self.name


TILES = ("--sets", "tiles", "--match", "dtype='float16'.*, [a-z]")
BUGS = (
    Bug("the list of rows is not read", "        row = tl.load(rows +", "        tl.load(rows +"),
    Bug(
        "the list of another pair is read",
        "rows + pair.to(tl.int64) * queries * group + place",
        "rows + pair.to(tl.int64) * queries + place",
        symptom=f"{WRONG}|{CRASHED}",
    ),
    Bug("heads of a group change places", "token = row // group", "token = row % queries"),
    Bug("every head reads the first keys", "kv_head = pair % kv_heads", "kv_head = pair * 0"),
    Bug("causal is ignored", "visible = tl.where(causal != 0,", "visible = tl.where(causal == 2,"),
    Bug("a query does not see its own key", "+ token + 1, 0)", "+ token, 0)"),
    Bug("queries begin at the first key", "keys - queries + token + 1", "token + 1"),
    Bug(
        "every tile counts as seen by all",
        "edge = tl.maximum(edge, inner)",
        "edge = tl.cdiv(end, TILE_KEYS) * TILE_KEYS",
    ),
    Bug("the first key of a range is left out", "(key >= start[", "(key > start[", TILES),
    Bug("the end of a range is seen", "tl.load(at + 1), 0)", "tl.load(at + 1) + 1, 0)", TILES),
    Bug("ranges of the first sequence serve all", "ranges + batch * ranges_batch", "ranges", TILES),
    Bug(
        "ranges are cut to 32 bits",
        "tl.load(at + 1), 0)",
        "tl.load(at + 1).to(tl.int32), 0)",
        TILES,
    ),
    Bug(
        "the tile of the first keys is left out",
        "sees, start, end), 0) //",
        "sees, start + 63, end), 0) //",
        TILES,
    ),
    Bug(
        "tiles before the first key count as seen by all",
        "inner = tl.cdiv(tl.max(tl.where(sees, start, 0), 0), TILE_KEYS)",
        "inner = begin // TILE_KEYS",
        TILES,
    ),
    Bug(
        "keys between the edges count twice", "begin, tl.minimum(inner, end),", "begin, end,", TILES
    ),
    Bug(
        "the second edge is left out", "        edge, end, end,", "        edge, edge, end,", TILES
    ),
    Bug("gates are ignored", "sums * (gate / total)[:, None]", "sums * (1.0 / total)[:, None]"),
    Bug(
        "closed gates do not silence",
        "result = tl.where(is_open[:, None], attention, 0.0)",
        "result = attention",
        ("--sets", "contract", "--tactics", "dense"),
    ),
    Bug("sums are not rescaled", "sums * decay[:, None])", "sums)"),
    Bug("the total is not rescaled", "total = total * decay +", "total = total +"),
    Bug("a blind row is divided by 0", "(start < visible)[:, None]", "(start <= visible)[:, None]"),
    Bug("the sign of the scale is lost", "tl.where(scale_log2 < 0, -1.0, 1.0)", "1.0"),
    Bug("the first tile is left out", "TILE_ROWS) - 1 - turn)", "TILE_ROWS) - turn)"),
    Bug(
        "rows behind the last are stored",
        "mask=is_row[:, None] &",
        "mask=",
        symptom=f"{WRONG}|{DAMAGED}",
    ),
    Bug(
        "offsets have 32 bits",
        "* query_token_stride",
        "* query_token_stride.to(tl.int32)",
        ("--sets", "tiles", "--match", "seq_len=150", "--far-apart"),
        symptom=f"{WRONG}|{CRASHED}",
    ),
)


@nightly
@pytest.mark.parametrize("bug", BUGS, ids=str)
@pytest.mark.usefixtures("needs_triton")
def test_bug_is_caught(emulator: Emulator, bug: Bug, tmp_path: Path):
    text = (SOURCES / "attention.py").read_text()
    assert text.count(bug.before) == 1, f"write the bug anew for the present source: {bug.before}"
    planted = tmp_path / "attention.py"
    planted.write_text(text.replace(bug.before, bug.after))
    verdict = run_cases(emulator.path, "--kernel", str(planted), "--stop", *bug.options)
    assert not verdict.passed, f"survives: {bug}"
    assert re.search(bug.symptom, verdict.output), verdict.output
