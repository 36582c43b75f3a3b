from __future__ import annotations

import pytest

from moh_deploy.serving.metrics import Trace

ID, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{ID}-{SPAN}-01"


@pytest.mark.parametrize(
    ("header", "is_sampled"),
    [
        (PARENT, True),
        (f"00-{ID}-{SPAN}-00", False),
        (f"00-{ID}-{SPAN}-03", True),
        # A later version keeps the four fields of today.
        (f"cc-{ID}-{SPAN}-01", True),
        (f"cc-{ID}-{SPAN}-01-what.the-future-holds", True),
    ],
)
def test_trace_is_read(header: str, is_sampled: bool):
    assert Trace.of([header]) == Trace(ID, is_sampled)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [""],
        [PARENT, PARENT],
        [f"{PARENT}, {PARENT}"],
        [f"{PARENT}-more"],  # which version 00 has not
        [f"{PARENT}\n"],
        [f"ff-{ID}-{SPAN}-01"],
        [f"00-{'0' * 32}-{SPAN}-01"],
        [f"00-{ID}-{'0' * 16}-01"],
        [PARENT.upper()],
        [f"00-{ID}0-{SPAN}-01"],
        [f"00-{ID[:-1]}g-{SPAN}-01"],
        [f"00-{ID[:-1]}٣-{SPAN}-01"],
        [f"00-{ID}-{SPAN}-1"],
        [f"cc-{ID}-{SPAN}-01.more"],
        [f"cc-{ID}-{SPAN}-01-\x1b[2J\n"],
        ["0" * 65536],
    ],
)
def test_what_is_none_is_ignored(headers: list[str]):
    assert Trace.of(headers) is None
