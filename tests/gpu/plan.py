"""The three stages of the GPU tests: steps in order of value, each with the seconds it should take.

python3 -m tests.gpu --plan    prints this; it needs neither a GPU nor torch
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product, zip_longest
from pathlib import Path

from tests.gpu.steps import Json, Step
from tests.gpu.workloads import AttentionShape, Sizes

STAGES = ("correct", "speed", "deep")
BUDGETS_S = {"correct": 100.0, "speed": 280.0, "deep": 280.0}
"""From the end of the build on."""
START_S, BUILD_S = 8.0, 20.0
"""A process that loads torch and opens the device; nvcc on 16 cores."""
MOST_BUILD_S = 300.0
GRACE_S = 30.0
"""What a stage may take beyond its budget, until its last step is killed."""
LIMIT_S = 570.0
"""Of all stages together: machines are lent for ten minutes a call."""
_HUNG_S = 5.0
"""When a step that should take hundredths of a second is taken to hang."""

_FAR_APART = AttentionShape("far_apart", 1, 4, 2, 70, 70, 64, causal=True)


@dataclass(frozen=True)
class Ingredients:
    """What a plan is made of.

    Attributes:
        cases: Name, op and dtype of each stored case.
        primitives: Names of the stored primitives.
        plugin: The plugin library and the harness that drives it, if they were brought along.
        out: Folder of all results.
    """

    sizes: Sizes
    cases: Sequence[tuple[str, str, str]]
    primitives: Sequence[str]
    plugin: tuple[Path, Path] | None
    out: Path
    small: bool = False


def steps_of(stage: str, ingredients: Ingredients) -> list[Step]:
    """Return the steps of a stage, the most valuable ones first."""
    machine = Step("machine", "machine", expected_s=START_S, timeout_s=90)
    steps = [machine, *_STEPS[stage](ingredients)]
    # The emulator takes seconds for what takes a GPU a few hundredths.
    slower = 6 if ingredients.small else 1
    return [replace(step, timeout_s=slower * step.timeout_s) for step in steps]


def _correct(ingredients: Ingredients) -> Iterator[Step]:
    out = str(ingredients.out)
    for name in ingredients.primitives:
        yield Step(f"primitive/{name}", "primitive", {"name": name, "out": out}, 0.05, _HUNG_S)
    yield from _cases("case", ingredients, ingredients.sizes.cases_every, {}, 0.06)
    yield _sanitized("memcheck", ingredients.sizes, 35.0)


def _cases(
    job: str,
    ingredients: Ingredients,
    every: int,
    arguments: dict[str, str],
    expected_s: float,
) -> Iterator[Step]:
    """Yield a step for every Nth case: ops and dtypes take turns, so that a cut hits none alone."""
    groups: dict[tuple[str, str], list[Step]] = {}
    for index, (name, op, dtype) in list(enumerate(ingredients.cases))[::every]:
        step = Step(f"{job}/{name}", job, {"index": index, **arguments}, expected_s, _HUNG_S)
        groups.setdefault((op, dtype), []).append(step)
    for turn in zip_longest(*groups.values()):
        yield from filter(None, turn)


def _speed(ingredients: Ingredients) -> Iterator[Step]:
    sizes = ingredients.sizes
    first, *others = sizes.dtypes
    yield Step("copy", "copy", {"size": sizes.copy_bytes})
    for dtype in sizes.dtypes:
        arguments = {"size": sizes.matrix_size, "dtype": dtype}
        yield Step(f"matrices/{dtype}", "matrices", arguments)
    # Clocks as they are at work; the stage asks again when all is done.
    yield Step("clocks", "machine", expected_s=0.3)
    best, *rest = sizes.shares
    soon, late = rest[:2], rest[2:]
    yield from _attention(sizes, [best], [first])
    yield from _aggregated(sizes, [best], [first])
    yield from _attention(sizes, soon, [first], seconds=1.6)
    yield from _once(sizes, (*sizes.decode, *sizes.masked), first)
    yield from _routers(sizes, first)
    yield from _attention(sizes, [best], [first], compiled=True, seconds=13.0)
    yield from _attention(sizes, late, [first], seconds=1.6)
    yield from _attention(sizes, sizes.shares, others[:1], seconds=1.6)
    yield from _aggregated(sizes, soon, [first])
    yield from _attention(sizes, sizes.shares, others[1:], seconds=2.2)
    yield from _aggregated(sizes, [best], others)


def _timed(sizes: Sizes) -> dict[str, Json]:
    return {"effort": sizes.effort.json()}


def _attention(
    sizes: Sizes,
    shares: Iterable[float],
    dtypes: Iterable[str],
    *,
    compiled: bool = False,
    seconds: float = 2.0,
) -> Iterator[Step]:
    for dtype, share, shape in product(dtypes, shares, sizes.attention):
        kind = "attention-compiled" if compiled else "attention"
        yield Step(
            f"{kind}/{shape.name}/{dtype}/{share}",
            "attention",
            {
                "shape": shape.json(),
                "share": share,
                "dtype": dtype,
                "compiled": compiled,
                **_timed(sizes),
            },
            expected_s=seconds,
            timeout_s=90 if compiled else 30,
        )


def _once(sizes: Sizes, shapes: Iterable[AttentionShape], dtype: str) -> Iterator[Step]:
    for shape in shapes:
        arguments = {"shape": shape.json(), "share": 0.75, "dtype": dtype, "compiled": False}
        yield Step(
            f"attention/{shape.name}/{dtype}/0.75",
            "attention",
            {**arguments, **_timed(sizes)},
            expected_s=2.0,
        )


def _aggregated(sizes: Sizes, shares: Iterable[float], dtypes: Iterable[str]) -> Iterator[Step]:
    for dtype, share, shape in product(dtypes, shares, sizes.aggregated):
        yield Step(
            f"aggregated/{shape.name}/{dtype}/{share}",
            "aggregated",
            {"shape": shape.json(), "share": share, "dtype": dtype, **_timed(sizes)},
            expected_s=5.0,
            timeout_s=90,
        )


def _routers(sizes: Sizes, dtype: str) -> Iterator[Step]:
    for shape in sizes.router:
        arguments = {"shape": shape.json(), "dtype": dtype, **_timed(sizes)}
        yield Step(f"router/{shape.name}/{dtype}", "router", arguments, 4.0, timeout_s=90)


def _parts(sizes: Sizes, dtype: str) -> Iterator[Step]:
    first, *_ = sizes.attention
    for shape, tactic in ((first, "sparse"), *((item, "chosen") for item in sizes.decode)):
        arguments = {"shape": shape.json(), "share": 0.75, "dtype": dtype, "tactic": tactic}
        arguments |= _timed(sizes)
        yield Step(f"parts/{shape.name}/{tactic}", "parts", arguments, 4.0)


def _deep(ingredients: Ingredients) -> Iterator[Step]:
    sizes = ingredients.sizes
    attention, aggregated, router = sizes.attention[0], sizes.aggregated[0], sizes.router[0]
    decode = sizes.decode[0]
    for op, shape, tactic in (
        ("MoHAttention", attention, "sparse"),
        ("MoHAttention", decode, "chosen"),
        ("MoHAggregatedAttention", aggregated, ""),
        ("MoHRouter", router, ""),
    ):
        arguments = {"op": op, "shape": shape.json(), "tactic": tactic}
        name = f"capture/{op}/{shape.name}"
        yield Step(name, "capture", arguments, START_S, timeout_s=60, fresh=True)
    # Not among the timings: a process that has been profiled is slower ever after.
    yield from _parts(sizes, sizes.dtypes[0])
    small = ["--small"] if ingredients.small else []
    yield _profiled("attend", ["attention", *small])
    yield _sanitized("racecheck", sizes, 45.0)
    yield _sanitized("initcheck", sizes, 35.0)
    yield from _plugin(ingredients)
    yield _profiled("compact", ["attention", *small])
    yield _profiled("attend_to_neighbours", ["aggregated", *small])
    for tactic in ("sparse", "dense"):
        arguments = {"shape": _FAR_APART.json(), "dtype": "float16", "tactic": tactic}
        arguments |= {"last_offset": sizes.last_offset}
        yield Step(f"far_apart/{tactic}", "far_apart", arguments, 2.0, timeout_s=60)
    yield _sanitized("synccheck", sizes, 35.0)


def _plugin(ingredients: Ingredients) -> Iterator[Step]:
    library, harness = ingredients.plugin or (None, None)
    arguments = {"plugin": str(library or ""), "harness": str(harness or "")}
    if library is None:
        # One step says what is missing.
        yield Step("plugin", "plugin", {"index": 0, **arguments}, 0.1)
        return
    yield from _cases("plugin", ingredients, ingredients.sizes.plugin_every, arguments, 0.1)


def _sanitized(tool: str, sizes: Sizes, seconds: float) -> Step:
    arguments = {"tool": tool, "every": sizes.every}
    return Step(f"sanitize/{tool}", "sanitize", arguments, seconds, timeout_s=2 * seconds)


def _profiled(kernel: str, program: list[str]) -> Step:
    arguments = {"kernel": kernel, "program": program}
    return Step(f"profile/{kernel}", "profile", arguments, 20.0, timeout_s=60)


_STEPS = {"correct": _correct, "speed": _speed, "deep": _deep}
