"""The parts of tools/try_release.py that need no environment."""

from pathlib import Path
from zipfile import ZipFile

from tools.try_release import COLUMNS, STEPS, Sources, Trial, report


def test_requirements_of_an_extra_are_read_from_the_wheel(tmp_path: Path):
    wheel = tmp_path / "made-1.0-py3-none-any.whl"
    lines = ("Name: made", "Requires-Dist: numpy>=2", 'Requires-Dist: torch>=2; extra == "export"')
    with ZipFile(wheel, "w") as archive:
        archive.writestr("made-1.0.dist-info/METADATA", "\n".join(lines) + "\n\nAbout.")
    assert Sources(wheel).requirements("") == ["numpy>=2"]
    assert Sources(wheel).requirements("export") == ["numpy>=2", "torch>=2"]


def test_report_names_the_step_that_failed():
    passed = Trial("3.11", "newest", {"python": "3.11.7", "torch": "2.15.0"}, {"install": 21.4})
    failed = Trial("3.13", "lowest", failure="install: pip ended with 1: no wheel")
    heads, _, first, second = report("made.whl", [passed, failed], "").splitlines()[2:6]
    assert heads.count("|") == 3 + len(COLUMNS) + len(STEPS) + 1
    assert first.startswith("| 3.11.7 | newest | 2.15.0 | - ")
    assert " | 21 | - | - | - | passed |" in first
    assert second.endswith("| install |")
