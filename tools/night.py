"""Plugin of pytest for runs of many hours: keep each result, and go on where the last run ended.

    PYTHONPATH=tools python -m pytest -p night --nightly --minutes 25
    python tools/night.py [FILE]        what ran when, on which processor and commit

A result is kept a line as soon as its test ends. A test that passed or was skipped is left out as
long as its key stays: the contents of what its file reaches (touched_tests.py), of all native
sources, the versions of what is installed, and the processor. With --shard 2/4, only files of the
second of four shards run.
"""

import hashlib
import json
import platform
import re
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from zlib import crc32

import pytest
from touched_tests import ROOT, imports_by_module, module_of, sources

RESULTS = Path("build/night.jsonl")
# Any test may run what is built of these.
NATIVE = ("plugins", "tools", "pyproject.toml")


@dataclass(frozen=True)
class Result:
    """What a test ended with.

    Attributes:
        key: Digest of what the test reaches, of versions and the processor; see `key_of`.
        outcome: "passed", "failed" or "skipped".
        why: The reason of a skip, the last line of a failure.
        commit: With a "+" behind it if files were changed since.
    """

    test: str
    key: str
    outcome: str
    seconds: float
    why: str
    processor: str
    commit: str
    ended: str


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--results", type=Path, default=RESULTS, help=f"file to keep results in, default {RESULTS}"
    )
    parser.addoption("--minutes", type=float, help="begin no test after this time")
    parser.addoption("--shard", default="1/1", help="K/N: only the K-th of N shards of files")


def pytest_configure(config: pytest.Config) -> None:
    # Processes of pytest-xdist choose their tests, and the process that started them keeps results.
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Keeper(config), "night-keeper")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    shard, count = map(int, config.getoption("--shard").split("/"))
    known = {
        (result.test, result.key)
        for result in read(config.getoption("--results"))
        if result.outcome != "failed"
    }
    left: list[pytest.Item] = []
    done: list[pytest.Item] = []
    for item in items:
        file = item.nodeid.partition("::")[0]
        is_ours = crc32(file.encode()) % count == shard - 1
        is_known = (item.nodeid, key_of(file)) in known
        (left if is_ours and not is_known else done).append(item)
    items[:] = left
    config.hook.pytest_deselected(items=done)


class _Keeper:
    def __init__(self, config: pytest.Config) -> None:
        self._path: Path = config.getoption("--results")
        minutes: float | None = config.getoption("--minutes")
        self._end = None if minutes is None else time.monotonic() + 60 * minutes
        self._reports: dict[str, list[pytest.TestReport]] = defaultdict(list)
        self._session: pytest.Session | None = None
        # Sources are read here, before tests run: an edit meanwhile is not what was tested.
        self._commit, self._processor = _commit(), _processor()
        sources()

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        self._session = session

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        parts = self._reports[report.nodeid]
        parts.append(report)
        if report.when != "teardown":
            return
        del self._reports[report.nodeid]
        worst = next((part for part in parts if part.failed), None) or next(
            (part for part in parts if part.skipped), report
        )
        result = Result(
            report.nodeid,
            key_of(report.nodeid.partition("::")[0]),
            worst.outcome,
            round(sum(part.duration for part in parts), 3),
            _why(worst),
            self._processor,
            self._commit,
            time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(result)) + "\n")
        if self._end is not None and time.monotonic() > self._end and self._session is not None:
            self._session.shouldstop = "the time is up; the next run goes on here"


def _why(report: pytest.TestReport) -> str:
    if report.passed:
        return ""
    if report.skipped:
        # (file, line, reason); an expected failure lacks it.
        return report.longrepr[-1] if isinstance(report.longrepr, tuple) else ""
    lines = [line for line in report.longreprtext.splitlines() if line.startswith("E ")]
    return lines[0].removeprefix("E ").strip()[:300] if lines else report.longreprtext[-300:]


@cache
def key_of(file: str) -> str:
    """Return a digest of what a test file's results hang on."""
    reached, named, waiting = set[str](), set[Path](), [module_of(ROOT / file)]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += imports_by_module().get(name, ())
    digest = hashlib.sha256(_common())
    for name in sorted(reached & _by_module().keys()):
        content, names = _by_module()[name]
        digest.update(content)
        named |= names
    for path in sorted(named):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


@cache
def _by_module() -> dict[str, tuple[bytes, set[Path]]]:
    """Return the digest of each module, and what it names: documents, examples, settings."""
    found = {}
    for path, text in sources().items():
        words = set(re.findall(r"[\w.-]+", text))
        named = {other for other in _others() if other.name in words}
        found[module_of(path)] = (
            hashlib.sha256(f"{path.relative_to(ROOT)}\0{text}".encode()).digest(),
            named,
        )
    return found


@cache
def _others() -> tuple[Path, ...]:
    """Return the files that a source may name: documents, examples, settings."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    paths = (ROOT / name for name in listed if not name.startswith(NATIVE))
    return tuple(path for path in paths if path not in sources() and path.is_file())


@cache
def _common() -> bytes:
    digest = hashlib.sha256(_processor().encode() + sys.version.encode())
    for name in sorted({f"{it.metadata['Name']}=={it.version}" for it in distributions()}):
        digest.update(name.encode() + b"\0")
    for path in sorted(
        path
        for name in NATIVE
        for path in ([ROOT / name] if (ROOT / name).is_file() else (ROOT / name).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    ):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.digest()


@cache
def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    if not facts.exists():
        return f"{platform.machine()} {platform.processor()}"
    lines = dict(line.split("\t:", 1) for line in _pairs(facts.read_text()))
    lines = {name.strip(): value.strip() for name, value in lines.items()}
    flags = lines.get("flags", lines.get("Features", "")).split()
    sets = [name for name in ("amx_tile", "avx512_bf16", "avx512f", "avx2") if name in flags]
    model = f"{lines.get('model name', '')} family {lines.get('cpu family', '')}"
    return f"{platform.machine()} {model} model {lines.get('model', '')} {' '.join(sets[:2])}"


def _pairs(text: str) -> Iterator[str]:
    return (line for line in text.partition("\n\n")[0].splitlines() if "\t:" in line)


def _commit() -> str:
    def said(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.strip()

    return said("rev-parse", "--short=8", "HEAD") + "+" * bool(said("status", "--short", "-uno"))


def read(path: Path) -> list[Result]:
    """Return what is kept; a line that a cut-off run left unfinished is left out."""
    if not path.exists():
        return []
    results = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            results.append(Result(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return results


def report(results: Iterable[Result]) -> Iterator[str]:
    """Yield lines of Markdown: a row a folder, then failures and skips with their reasons.

    The last result of a test counts; one whose key differs today is old.
    """
    last = {result.test: result for result in results}
    folders: dict[str, list[Result]] = defaultdict(list)
    for result in last.values():
        folder = result.test.partition("::")[0].split("/")[:-1]
        folders["/".join(folder[:2])].append(result)
    titles = "folder", "passed", "failed", "skipped", "old", "minutes", "on", "commit", "processor"
    yield f"| {' | '.join(titles)} |"
    yield "|---" * len(titles) + "|"
    for folder, of_folder in sorted(folders.items()):
        counts = Counter(result.outcome for result in of_folder)
        old = sum(_is_old(result) for result in of_folder)
        ended = sorted(result.ended[:10] for result in of_folder)
        cells = (
            folder,
            *(str(counts[name]) for name in ("passed", "failed", "skipped")),
            str(old),
            f"{sum(result.seconds for result in of_folder) / 60:.1f}",
            ended[0] if ended[0] == ended[-1] else f"{ended[0]} to {ended[-1]}",
            ", ".join(sorted({result.commit for result in of_folder})),
            ", ".join(sorted({result.processor for result in of_folder})),
        )
        yield f"| {' | '.join(cells)} |"
    yield ""
    for result in last.values():
        if result.outcome == "failed":
            yield f"- failed: `{result.test}`: {result.why}"
    skips = Counter(result.why for result in last.values() if result.outcome == "skipped")
    yield from (f"- skipped {count}: {why}" for why, count in skips.most_common())


def _is_old(result: Result) -> bool:
    file = result.test.partition("::")[0]
    return not (ROOT / file).is_file() or key_of(file) != result.key


if __name__ == "__main__":
    print("\n".join(report(read(Path(*sys.argv[1:2] or [RESULTS])))))
