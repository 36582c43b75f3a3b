"""`python -m tests.fuzz --minutes N`: go on with other inputs than the tests try.

Every reader runs in a process of its own, which may take so much memory and no more, and is stopped
when it says nothing for a while. What is found is printed, shrunk, and the exit code is 1 then.
"""

import argparse
import json
import logging
import os
import resource
import select
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

_MORE_BYTES = 1 << 30  # than a reader has taken when it is ready
_SILENT_SECONDS = 300
_BATCH = 100


@dataclass
class Tally:
    """What came of one reader."""

    answers: Counter[str] = field(default_factory=Counter)
    found: list[str] = field(default_factory=list)


def main() -> int:
    """Share the time among all readers; return 1 if one broke."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--target", action="append", help="Only this reader. Repeatable.")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--most", type=int, default=10**9, help="Inputs for each reader.")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _fuzz(options.child, options.seed, time.monotonic() + options.minutes * 60, options.most)
        return 0
    from tests.fuzz.targets import TARGETS

    names = options.target or list(TARGETS)
    tallies = {name: Tally() for name in names}
    end = time.monotonic() + options.minutes * 60
    for index, name in enumerate(names):
        share = max(0.0, end - time.monotonic()) / (len(names) - index) / 60
        _run(name, tallies[name], options.seed, share, options.most)
        answers = tallies[name].answers
        print(f"{name}: {answers.total()} inputs, {dict(answers)}", flush=True)
        for item in tallies[name].found:
            print(f"FOUND in {name}:\n{item}\n", flush=True)
    total = sum(tally.answers.total() for tally in tallies.values())
    found = sum(len(tally.found) for tally in tallies.values())
    print(f"{total} inputs, {found} findings, seed {options.seed}")
    return 1 if found else 0


def _run(name: str, tally: Tally, seed: int, minutes: float, most: int) -> None:
    """Run a reader in a process of its own, and read what it says of each batch."""
    command = [sys.executable, "-m", "tests.fuzz", "--child", name, "--seed", str(seed)]
    command += ["--minutes", str(minutes), "--most", str(most)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        while True:
            ready, _, _ = select.select([child.stdout], [], [], _SILENT_SECONDS)
            if not ready:
                child.kill()
                tally.found.append(f"it hung for {_SILENT_SECONDS} s, seed {seed}")
                return
            line = child.stdout.readline()
            if not line:
                break
            said = json.loads(line)
            tally.answers.update(said["answers"])
            tally.found += said["found"]
    if child.returncode:
        tally.found.append(f"its process ended with {child.returncode}, seed {seed}")


def _fuzz(name: str, seed: int, end: float, most: int) -> None:
    """Draw and read, batch by batch, until the time is over."""
    from tests.fuzz.targets import TARGETS

    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a reader prints is none of our messages
    logging.disable()  # nor what libraries say of models that make no sense
    with tempfile.TemporaryDirectory(prefix="moh-fuzz-") as folder:
        prepared = TARGETS[name](Path(folder))
        _limit_memory()
        tried = batch = 0
        while time.monotonic() < end and tried < most:
            answers, found = _batch(prepared, seed * 1_000_003 + batch)
            tried, batch = tried + answers.total(), batch + 1
            print(json.dumps({"answers": answers, "found": found}), file=channel, flush=True)
            if found:
                return


def _batch(prepared: object, seed: int) -> tuple[Counter[str], list[str]]:
    import hypothesis

    from tests.fuzz.target import Prepared

    assert isinstance(prepared, Prepared)
    answers: Counter[str] = Counter()

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=_BATCH,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(prepared.inputs)
    def fuzz(drawn: object) -> None:
        answers[prepared.answer(drawn)] += 1

    try:
        fuzz()
    except BaseException as error:
        notes = "\n".join(getattr(error, "__notes__", ()))
        return answers, [f"{''.join(traceback.format_exception(error))}\n{notes}"[-6000:]]
    return answers, []


def _limit_memory() -> None:
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + _MORE_BYTES, taken + _MORE_BYTES))


if __name__ == "__main__":
    sys.exit(main())
