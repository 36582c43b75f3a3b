"""Plugin of pytest for runs of many hours: keep each result, and go on where the last run ended.

    PYTHONPATH=tools python -m pytest -p night --nightly --minutes 25
    python tools/night.py             what ran when, on which processor and commit
    make record                       keep whole files (tests/night.jsonl, docs/evidence.md)
    python tools/night.py --check     say which kept results are of other contents

A result is kept a line as soon as its test ends. A test that passed or was skipped is left out as
long as its processor and its key stay: the contents of what its file reaches (touched_tests.py), of
all native sources, and the versions of the packages that these name. With --shard 2/4, only files
of the second of four shards run.

build/night.jsonl has a line a test, and ends with the checkout. tests/night.jsonl has a line a file
of tests and processor, and is under version control: another machine goes on from it.
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
from importlib.metadata import packages_distributions, version
from pathlib import Path
from zlib import crc32

import pytest
from touched_tests import ROOT, imports_by_module, module_of, sources

RESULTS = Path("build/night.jsonl")
RECORD = ROOT / "tests" / "night.jsonl"
PAGE = ROOT / "docs" / "evidence.md"
# The page's tables stand between these lines.
BEGIN, END = "<!-- generated: tools/night.py -->\n", "<!-- /generated -->\n"
# Any test may run what is built of these.
NATIVE = ("plugins", "tools/build_kernels.py", "tools/build_backend.py", "tools/cross")
NATIVE += ("setup.py",)


@dataclass(frozen=True)
class Result:
    """What a test ended with.

    Attributes:
        key: Digest of what the test reaches and of versions; see `key_of`.
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


@dataclass(frozen=True)
class FileResult:
    """What all tests of a file ended with, on a processor.

    Attributes:
        skipped: Reason of a skip -> number of tests.
        failed: Test -> last line of its failure.
        ended: Day of the last test.
    """

    file: str
    key: str
    processor: str
    passed: int
    skipped: dict[str, int]
    failed: dict[str, str]
    seconds: float
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
    here = _processor()
    known = {
        (result.test, result.key)
        for result in read(config.getoption("--results"))
        if result.outcome != "failed" and result.processor == here
    }
    recorded = {it.file: it for it in read_record() if it.processor == here}
    left: list[pytest.Item] = []
    done: list[pytest.Item] = []
    for item in items:
        file = item.nodeid.partition("::")[0]
        is_ours = crc32(file.encode()) % count == shard - 1
        of_file = recorded.get(file)
        is_known = (item.nodeid, key_of(file)) in known or (
            of_file is not None
            and of_file.key == key_of(file)
            and item.nodeid not in of_file.failed
        )
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
    """Return digests of what a test file's results hang on: of sources, and of versions."""
    reached, waiting = set[str](), [module_of(ROOT / file)]
    named, packages = set[Path](), set[str]()
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += imports_by_module().get(name, ())
    digest = hashlib.sha256(_common())
    for name in sorted(reached & _by_module().keys()):
        module = _by_module()[name]
        digest.update(module.content)
        named |= module.named
        packages |= module.packages
    for path in sorted(named):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    versions = [sys.version, *(f"{package}=={version(package)}" for package in sorted(packages))]
    of_versions = hashlib.sha256("\0".join(versions).encode())
    return f"{digest.hexdigest()[:16]}-{of_versions.hexdigest()[:8]}"


@dataclass(frozen=True)
class _Module:
    """A module's digest, and what it names: documents, examples, tools, installed packages."""

    content: bytes
    named: set[Path]
    packages: set[str]


@cache
def _by_module() -> dict[str, _Module]:
    found = {}
    installed = packages_distributions()
    for path, text in sources().items():
        words = set(re.findall(r"[\w.-]+", text))
        parts = set(re.findall(r"\w+", text))  # `torch.nn` names torch
        # import_module("night") and tools.night name the tool, a comment on the night does not.
        tools = set(re.findall(r'(?:"|\btools[./])(\w+)', text))
        # A test of all pages names their folder.
        is_test = path.is_relative_to(ROOT / "tests")
        folders = set(re.findall(r'"(\w+)"', text)) if is_test else set()
        found[module_of(path)] = _Module(
            hashlib.sha256(f"{path.relative_to(ROOT)}\0{text}".encode()).digest(),
            {
                other
                for other in _others()
                # A comment or an error names a page, or pyproject.toml; tests alone read them.
                if (other.name in words and (is_test or other.suffix not in (".md", ".toml")))
                or (other.parent.name == "tools" and other.stem in tools)
                or other.relative_to(ROOT).parts[0] in folders - {"tests"}
            },
            {it for name in parts & installed.keys() for it in installed[name]} - {"moh-deploy"},
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
    # The tables of results change with the results.
    left_out = {*sources(), RECORD, PAGE}
    return tuple(path for path in paths if path not in left_out and path.is_file())


@cache
def _common() -> bytes:
    digest = hashlib.sha256(_settings())
    for path in sorted(
        path
        for name in NATIVE
        for path in ([ROOT / name] if (ROOT / name).is_file() else (ROOT / name).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    ):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.digest()


def _settings() -> bytes:
    """Return pyproject.toml without bounds of versions: what they allow is among the versions."""
    bounds = rb'([<>=!~]=?[\d.]+,?)+(?=["; ])'
    return re.sub(bounds, b"", (ROOT / "pyproject.toml").read_bytes())


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


def read_record() -> list[FileResult]:
    if not RECORD.exists():
        return []
    return [FileResult(**json.loads(line)) for line in RECORD.read_text().splitlines()]


def by_file(results: Iterable[Result], tests: Iterable[str] | None = None) -> list[FileResult]:
    """Return the last results, a row a file and processor; only of these tests, if given.

    With `tests`, a file is left out as long as one of its tests has no result of today's contents.
    """
    last = {(result.processor, result.test): result for result in results}
    rows: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in last.values():
        rows[result.processor, _file_of(result.test)].append(result)
    wanted: dict[str, set[str]] = defaultdict(set)
    for test in tests or ():
        wanted[_file_of(test)].add(test)
    found = []
    for (processor, file), of_file in sorted(rows.items()):
        if tests is not None:
            of_file = [it for it in of_file if it.test in wanted[file] and it.key == key_of(file)]
            if not of_file or len(of_file) < len(wanted[file]):
                continue
        outcomes = Counter(result.outcome for result in of_file)
        found.append(
            FileResult(
                file,
                max(of_file, key=lambda it: it.ended).key,
                processor,
                outcomes["passed"],
                dict(Counter(it.why for it in of_file if it.outcome == "skipped")),
                {it.test: it.why for it in of_file if it.outcome == "failed"},
                round(sum(it.seconds for it in of_file), 1),
                max(of_file, key=lambda it: it.ended).commit,
                max(it.ended[:10] for it in of_file),
            )
        )
    return found


def _file_of(test: str) -> str:
    return test.partition("::")[0]


def report(rows: Iterable[FileResult]) -> Iterator[str]:
    """Yield lines of Markdown: for each processor a row a folder, then failures and skips."""
    by_processor: dict[str, list[FileResult]] = defaultdict(list)
    for row in rows:
        by_processor[row.processor].append(row)
    for processor, of_processor in sorted(by_processor.items()):
        days = sorted({row.ended for row in of_processor})
        yield f"On `{processor}`, {' to '.join(days[:1] + days[1:][-1:])}, commits"
        yield ", ".join(sorted({row.commit for row in of_processor})) + ":"
        yield ""
        yield from _table(of_processor)
        yield ""
        for row in of_processor:
            yield from (f"- failed: `{test}`: {why}" for test, why in row.failed.items())
        skips = Counter[str]()
        for row in of_processor:
            skips.update(row.skipped)
        yield from (f"- {count} skipped: `{why}`" for why, count in skips.most_common())
        yield ""


def _table(rows: list[FileResult]) -> Iterator[str]:
    folders: dict[str, list[FileResult]] = defaultdict(list)
    for row in rows:
        folders["/".join(row.file.split("/")[:-1][:2])].append(row)
    titles = "folder", "files", "passed", "failed", "skipped", "minutes"
    yield f"| {' | '.join(titles)} |"
    yield "|---" + "|---:" * (len(titles) - 1) + "|"
    for folder, of_folder in [*sorted(folders.items()), ("all", rows)]:
        counts = (
            len(of_folder),
            sum(row.passed for row in of_folder),
            sum(len(row.failed) for row in of_folder),
            sum(sum(row.skipped.values()) for row in of_folder),
            round(sum(row.seconds for row in of_folder) / 60, 1),
        )
        yield f"| {folder} | {' | '.join(map(str, counts))} |"


def record() -> None:
    """Add the files that ran whole to the record, and renew the page's tables."""
    listed = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "--nightly",
            "--collect-only",
            "-q",
            "-p",
            "no:cacheprovider",
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    rows = {(row.file, row.processor): row for row in read_record()}
    tests = [line for line in listed if "::" in line]
    rows |= {(row.file, row.processor): row for row in by_file(read(RESULTS), tests)}
    kept = [row for _, row in sorted(rows.items()) if (ROOT / row.file).is_file()]
    RECORD.write_text("".join(json.dumps(asdict(row)) + "\n" for row in kept))
    PAGE.write_text(_page(kept))


def _page(rows: list[FileResult]) -> str:
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    tables = list(report(rows)) or ["No run is recorded yet.", ""]
    return before + BEGIN + "\n" + "\n".join(tables) + "\n" + END + after


def check() -> str | None:
    """Print which kept results are of other contents; return what has to be mended."""
    rows = read_record()
    # An environment without the extras has other versions.
    same = sum(key_of(row.file).partition("-")[0] == row.key.partition("-")[0] for row in rows)
    print(f"night: {same} of {len(rows)} files of tests ran on these sources")
    if PAGE.read_text() != _page(rows):
        return f"{PAGE.name} differs from {RECORD.name}: run make record"
    return None


if __name__ == "__main__":
    if sys.argv[1:] == ["--record"]:
        record()
    elif sys.argv[1:] == ["--check"]:
        sys.exit(check())
    else:
        print("\n".join(report(by_file(read(Path(*sys.argv[1:2] or [RESULTS]))))))
