"""Tries planted bugs: `python -m tests.cuda.mutations [REGEX]`."""

import re
import resource
import sys
import tempfile
from pathlib import Path

from tests.cuda.mutations.mutation import Mutation
from tests.cuda.mutations.planting import try_out
from tests.cuda.mutations.table import MUTATIONS


def main(pattern: str = "") -> int:
    """Try all whose name has the pattern; the exit code is 1 if there is none or one survives."""
    chosen = [mutation for mutation in MUTATIONS if re.search(pattern, str(mutation))]
    survivors = [item for item in chosen if not _is_caught(item)]
    print(f"{len(chosen)} planted, {len(survivors)} not caught, {_cpu_seconds():.0f} s of CPU")
    return 1 if survivors or not chosen else 0


def _is_caught(mutation: Mutation) -> bool:
    before = _cpu_seconds()
    with tempfile.TemporaryDirectory() as folder:
        verdict = try_out(mutation, Path(folder))
    found = None if verdict.passed else re.search(mutation.symptom, verdict.output)
    outcome = f"caught ({found.group()})" if found else f"NOT CAUGHT\n{verdict.output}"
    print(f"{_cpu_seconds() - before:5.1f} s  {mutation}: {outcome}", flush=True)
    return found is not None


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
