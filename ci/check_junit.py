"""End with 1 unless a JUnit file holds tests, none of them failed, and one of them passed.

A file that cannot be read is no answer at all, and ends with 2.

An exit code of 0 says that nothing failed; this says that something was tested.
"""

import sys
import xml.etree.ElementTree as xml
from pathlib import Path

UNREADABLE = "cannot be read"


def problem(path: Path) -> str | None:
    """Return what keeps the file from being a pass, as half a sentence; None for nothing."""
    try:
        cases = list(xml.parse(path).getroot().iter("testcase"))
    except (OSError, xml.ParseError) as error:
        return f"{UNREADABLE}: {error}"
    if not cases:
        return "holds no test"
    found = [{child.tag for child in case} for case in cases]
    bad = sum(bool(tags & {"failure", "error"}) for tags in found)
    if bad:
        return f"holds {bad} of {len(cases)} tests that failed"
    if all("skipped" in tags for tags in found):
        return f"holds {len(cases)} tests, all of them skipped"
    return None


if __name__ == "__main__":
    file = Path(sys.argv[1])
    wrong = problem(file)
    if wrong is not None:
        print(f"error: {file} {wrong}: that is no pass.", file=sys.stderr)
        sys.exit(2 if wrong.startswith(UNREADABLE) else 1)
