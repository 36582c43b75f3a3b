"""The page of the first run, in Markdown: what went wrong first, then engines, then lines."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import cast

from tests.gpu.steps import GOOD, Facts, Json, Result

_COLUMNS = ("engine", "built s", "layers run by", "compared", "GPU ms", "GPU ms, graph")


def page(header: Facts, results: Sequence[Result]) -> Iterator[str]:
    """Yield the lines of the page, of whatever there is so far."""
    machine = cast(Facts, header.get("machine", {}))
    gpu = cast(Facts, machine.get("gpu") or {})
    yield f"# First run: {gpu.get('name', 'no GPU')}"
    yield ""
    versions = cast(dict[str, str | None], machine.get("versions", {}))
    found = [f"{name} {number}" for name, number in versions.items() if number is not None]
    yield ", ".join([str(machine.get("tensorrt", "no TensorRT")), *found])
    yield ""
    counts = Counter(result.status for result in results)
    yield ", ".join(f"{number} {status}" for status, number in sorted(counts.items()))
    if "nothing_tested" in header:
        yield f"Nothing was tested: {header['nothing_tested']}"
    bad = [item for item in results if item.status not in GOOD]
    if bad:
        yield from ("", "## Went wrong", "")
        for item in bad:
            yield f"- {item.step}: {item.status}: {' '.join(item.problem.split())}"
    by_name = {result.step: result for result in results}
    builds = [name for name in by_name if name.startswith("build/")]
    if builds:
        yield from ("", "## Engines", "")
        yield from (f"| {' | '.join(_COLUMNS)} |", "|---" * len(_COLUMNS) + "|")
        yield from (_engine_row(name.removeprefix("build/"), by_name) for name in builds)
        yield from _decisions(by_name, builds)
    yield from _lines(results)
    reasons: dict[str, list[str]] = {}
    for item in results:
        if item.status in ("missing", "cut"):
            reason = "no time was left" if item.status == "cut" else item.problem
            reasons.setdefault(reason, []).append(item.step)
    if reasons:
        yield from ("", "## Left out", "")
        yield from (f"- {reason} {', '.join(steps)}" for reason, steps in reasons.items())


def _engine_row(name: str, by_name: dict[str, Result]) -> str:
    build, verify, time = (by_name.get(f"{job}/{name}") for job in ("build", "verify", "time"))
    layers = cast(list[Facts], _fact(build, "layers") or [])
    ways = Counter(str(layer["attention"]) for layer in layers)
    times = cast(list[Facts], _fact(time, "times") or [])
    cells = (
        name,
        str(_fact(build, "built_s") or (build.status if build else "")),
        ", ".join(f"{number} {way}" for way, number in ways.items()),
        "" if verify is None else verify.status,
        *(" / ".join(f"{row[key]}" for row in times) for key in ("events_ms", "graph_ms")),
    )
    return f"| {' | '.join(cells)} |"


def _decisions(by_name: dict[str, Result], builds: Sequence[str]) -> Iterator[str]:
    """Yield what was timed for the layers of engines whose candidates were."""
    for name in builds:
        for layer in cast(list[Facts], _fact(by_name[name], "layers") or []):
            if layer["ms"]:
                yield ""
                yield f"{name} {layer['path']}: {layer['decision']}: {layer['ms']}"


def _lines(results: Sequence[Result]) -> Iterator[str]:
    ran = [result for result in results if "line" in result.facts]
    if ran:
        yield from ("", "## Commands", "")
    for result in ran:
        timed = f", {result.facts['gpu_ms']} ms on the GPU" if "gpu_ms" in result.facts else ""
        yield from (f"{result.step}: {result.status}{timed}", "", "```console")
        yield from (f"$ {result.facts['line']}", "```", "")


def _fact(result: Result | None, name: str) -> Json:
    return None if result is None else result.facts.get(name)
