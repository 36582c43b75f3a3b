"""A document of no job of ours, in every format: what a renderer needs to know is in it."""

import html
import re
import xml.etree.ElementTree as xml
from dataclasses import replace

import pytest

from moh_deploy.report.document import (
    PAGE,
    ROOMY,
    TEXT,
    About,
    Column,
    Document,
    Drawn,
    Fact,
    Folded,
    HeatMap,
    HeatMaps,
    LatencyChart,
    Line,
    LoadRow,
    MarginBin,
    MarginCharts,
    MarginHistogram,
    Section,
    Share,
    Status,
    Table,
    Text,
    Verdict,
)
from moh_deploy.report.html.page import page
from moh_deploy.report.junit import junit
from moh_deploy.report.markdown import markdown
from moh_deploy.report.terminal import terminal
from tests.report.shown import text_of

ABOUT = About("a thing")
COLUMNS = (
    "name",
    Column("drawing", PAGE),
    "#size",
    Column("#share", ROOMY),
    Column("#told", TEXT),
    "",
)
ROWS = (
    ("first", Drawn("1 of 4", 1.0, 2.0, (0.5, 1.5), 0.0), 1.23456, Share(0.25), True, None),
    ("second", Drawn("3 of 4", 3.0, 2.0), 100, Share(None), False, Status("too big", False)),
)
CHARTS = (
    HeatMaps((HeatMap("loads", "layer", (LoadRow("one", 4, (1, 4), (1, 4), 1),)),)),
    MarginCharts((MarginHistogram("one", 0.1, (MarginBin(0.5, 1.0, 3, 1, 0),)),)),
    LatencyChart("recorded", (Line("mine", "2 runs", (1.0, 2.0)),)),
)
TOY = Document(
    "weigh",
    (
        Text("[not markup]"),
        Section("Sizes", (Table("sizes of all", COLUMNS, ROWS, axis="numbers"),)),
        Section("Drawings", (Text("how to read the drawing"), *CHARTS), shown=PAGE),
        Folded("more of it", (Text("unfolded in text"),)),
    ),
    Verdict("TOO HEAVY", False, "2 things.", ("by 3 g",), ("one is light",), ("two is not",)),
    facts=(Fact("weight", "7 g", "of 4"),),
    findings=("most is water",),
    remarks=("on a scale",),
)


def on_page(document: Document) -> str:
    text = re.sub(r"<style>.*?</style>|<[^>]+>", " ", page(document, ABOUT), flags=re.DOTALL)
    return " ".join(html.unescape(text).split())


def test_terminal_has_the_verdict_first_and_what_it_has_room_for():
    short, text = text_of(terminal(TOY), 100), text_of(terminal(TOY, verbose=True), 100)
    assert "│ first  │ 1.23 │  yes │ -       │" in short
    assert "│ first  │ 1.23 │ 25.0 % │  yes │ -       │" in text
    assert "│ second │  100 │      - │   no │ too big │" in text
    words = ["TOO HEAVY: by 3 g", "one is light", "two is not", "[not markup]", "sizes of all"]
    words += ["unfolded", "most is water", "on a scale"]
    for shown in (short, text):
        places = [shown.index(item) for item in words]
        assert places == sorted(places)
        assert "drawing" not in shown.lower()


def test_markdown_has_the_verdict_first_and_what_it_has_room_for():
    text = markdown(TOY, ABOUT)
    assert text.startswith("### a thing: TOO HEAVY\n\nby 3 g\n\n- one is light\n- two is not\n")
    assert "\n| name | size | told |  |\n| --- | ---: | ---: | --- |\n" in text
    assert "\n| second | 100 | no | **too big** |\n" in text
    assert text.endswith("\n- most is water\n- on a scale\n")
    assert "\\[not markup\\]" in text
    assert "drawing" not in text.lower()


def test_page_has_all_but_what_is_for_text():
    text = on_page(TOY)
    assert "✗ TOO HEAVY 2 things. two is not weight 7 g of 4 What it shows most is water" in text
    assert "first 1 of 4 1.23 25.0 % –" in text
    assert "told" not in text
    assert "how to read the drawing" in text
    for drawn in ("% of tokens and more", "3 tokens; flips: 1 explained", "mine: 2 runs"):
        assert drawn in text


def test_document_without_cases_is_one():
    root = xml.fromstring(junit(TOY, ABOUT))
    (failure,) = root.iter("failure")
    assert failure.get("message") == "two is not"
    assert root.get("tests") == "1"


def test_document_without_a_verdict_has_none_in_any_format():
    plain = replace(TOY, verdict=None)
    for text in (text_of(terminal(plain)), markdown(plain, ABOUT), on_page(plain)):
        assert "TOO HEAVY" not in text
    (case,) = xml.fromstring(junit(plain, ABOUT)).iter("skipped")
    assert case.get("message") == "Nothing is judged."


@pytest.mark.parametrize("is_good", [True, False])
def test_parts_with_an_answer_of_their_own_say_it_and_their_reasons(is_good: bool):
    own = Verdict("LIGHT", is_good, lines=("1 g",), reasons=() if is_good else ("it is not",))
    document = replace(TOY, blocks=(Section("Part", (), own),))
    for text in (text_of(terminal(document), 100), markdown(document, ABOUT)):
        assert "Part" in text
        assert ("it is not" in text) != is_good
        assert "two is not" not in text  # the parts say what is wrong
    assert ("LIGHT: 1 g" in text_of(terminal(document), 100)) is True
    heading = "#### Part: light" if is_good else "#### Part: LIGHT"
    assert heading in markdown(document, ABOUT)
    assert "Part light" in on_page(document)


def test_baseline_is_judged_apart():
    verdict = Verdict("WORSE", False, lines=("b.json: 1 worse",), reasons=("it was 1",))
    document = replace(TOY, baseline=Section("Baseline file", (), verdict))
    assert text_of(terminal(document), 100).rstrip().endswith("WORSE: b.json: 1 worse\nit was 1")
    assert "#### Baseline file: WORSE\n\nb.json: 1 worse\n\n- it was 1\n" in markdown(document)
    text = on_page(document)
    assert text.index("b.json: 1 worse") < text.index("it was 1") < text.index("weight")
