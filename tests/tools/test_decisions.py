"""The list of decisions names every page by its title."""

from pathlib import Path

DECISIONS = Path(__file__).parents[2] / "docs/adr"


def test_list_names_every_decision_by_its_title():
    listed = [
        line for line in (DECISIONS / "README.md").read_text().splitlines() if line[:3] == "- ["
    ]
    expected = []
    for page in sorted(DECISIONS.glob("0[0-9][0-9][0-9]-*.md"))[1:]:  # without the template
        number, title = page.read_text().splitlines()[0].removeprefix("# ").split(". ", 1)
        expected.append(f"- [{number}]({page.name}): {title}")
    assert listed == expected
