"""Bugs planted in the PTX of a kernel are caught, each of them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from moh_deploy.ops.cases import Case
from tests.cuda import nvcc
from tests.cuda.interpreted import Interpreted
from tests.cuda.kernels import Plan
from tests.cuda.libraries import Emulator
from tests.cuda.many_tokens import MANY_TOKENS
from tests.cuda.ptx.interpreter import NO_CHECKS
from tests.cuda.ptx.machine import Checks
from tests.nightly import in_turn, sampled
from tests.plugins.attention_setups import AttentionSetup

KERNEL = "attendI6__halfLi32ENS0_5BlockILi{}ELi{}EEELb0"
BLOCKS = ("64by16", "64by32")
_SETUP = AttentionSetup(
    seq_len=70, kv_len=140, kv_num_heads=1, group=2, head_dim=32, value_dim=32, dtype="float16"
)
CASES = (
    replace(_SETUP, is_causal=True).case(),
    replace(_SETUP, group=3, seq_len=13, kv_len=70, head_dim=21, value_dim=19).case(),
    # Row r sees r + 1 keys: each place of a tile's scores has one that is just hidden.
    replace(_SETUP, group=1, kv_len=70, is_causal=True).case(),
)
PLANS = (("sparse", 1), ("sparse", 3), ("dense", 1))
EVERYTHING = Checks(races=True, late_copies=True)


@dataclass(frozen=True)
class Bug:
    """A change of the text.

    Attributes:
        pattern: Where; `replacement` is what then stands there.
        at_least: How many places there are, of which each is a bug of its own.
        caught: A part of what is said about it.
        checks: What it takes to see it; without any it shows in the results.
    """

    pattern: str
    replacement: str
    at_least: int
    caught: str
    checks: Checks = NO_CHECKS


_BARRIER = r"^\s*bar\.sync\s+0;"
_B_OPERANDS = r"(mma\.sync\.[^;]*\{[^}]*\},\s*\{[^}]*\},\s*\{)(%r\d+),\s*(%r\d+)\}"
_A_OPERANDS = r"(mma\.sync\.[^;]*\{[^}]*\},\s*\{%r\d+),\s*(%r\d+),\s*(%r\d+)"
# A score is hidden where its key comes before the first one that its row sees, or behind the last.
_KEY_LIMIT = (
    r"(setp\.gt\.s32\s+%p\d+, %r\d+, (%r\d+);\s+setp\.)le"
    r"(\.s32\s+%p\d+, %r\d+, \2;\s+or\.pred[^;]*;\s+mul\.f32[^;]*;\s+selp\.f32)"
)

BUGS = {
    "values_are_loaded_without_transposition": Bug(r"\.x4\.trans\.", ".x4.", 4, "tolerance"),
    "keys_are_loaded_transposed": Bug(
        r"(ldmatrix[\w.]*\.x4)\.shared", r"\1.trans.shared", 4, "tolerance"
    ),
    "a_barrier_is_missing": Bug(_BARRIER, "", 3, "no barrier is between them", EVERYTHING),
    "a_wait_for_copies_is_weakened": Bug(
        r"wait_group 0", "wait_group 1", 2, "before it was waited for", EVERYTHING
    ),
    "a_copy_is_read_before_it_is_there": Bug(
        r"wait_group 0",
        "wait_group 1",
        2,
        "differs|tolerance|not exactly",
        Checks(late_copies=True),
    ),
    "operands_of_a_product_are_swapped": Bug(_A_OPERANDS, r"\1, \3, \2", 16, "tolerance"),
    "a_key_beyond_the_limit_is_seen": Bug(_KEY_LIMIT, r"\1lt\3", 32, "tolerance|differs"),
}


@pytest.fixture(scope="module")
def modules(needs_nvcc: None) -> list[str]:
    sources = [s for s in nvcc.kernel_sources() if s.stem in ("attention", "attention_32")]
    return nvcc.ptx_of(sources)


def planted(modules: list[str], bug: Bug, block: str) -> Iterator[list[str]]:
    """Yield the modules with the bug at the first, and with it at the last of its places."""
    for number, text in enumerate(modules):
        entry = _entry(text, KERNEL.format(*block.split("by")))
        if entry is None:
            continue
        places = list(re.finditer(bug.pattern, text[entry], re.M))
        assert len(places) >= bug.at_least, f"{len(places)} places"
        for place in (places[0], places[-1]):
            start, end = (entry.start + at for at in place.span())
            changed = text[:start] + place.expand(bug.replacement) + text[end:]
            yield [*modules[:number], changed, *modules[number + 1 :]]


def _entry(text: str, kernel: str) -> slice | None:
    """Return where a kernel is in a module, if it is there."""
    match = re.search(rf"\.entry \w*{kernel}.*?(?=\.entry|\Z)", text, re.S)
    return slice(*match.span()) if match else None


def find_problem(emulator: Emulator, modules: list[str], checks: Checks, block: str) -> str | None:
    interpreted = Interpreted(emulator, modules)
    plans = [Plan(tactic, splits, block) for tactic, splits in PLANS]
    runs: Iterator[tuple[Case, Plan]] = ((case, plan) for case in CASES for plan in plans)
    problems = (interpreted.find_mismatch(case, plan, checks) for case, plan in runs)
    return next((problem for problem in problems if problem is not None), None)


@sampled(2)
@pytest.mark.parametrize(("checks", "block"), in_turn([NO_CHECKS, EVERYTHING], BLOCKS))
def test_nothing_is_wrong_without_a_bug(
    emulator: Emulator, modules: list[str], checks: Checks, block: str
):
    assert find_problem(emulator, modules, checks, block) is None


@sampled(3)
@pytest.mark.parametrize(("name", "block"), in_turn(BUGS, BLOCKS))
def test_planted_bug_is_caught(emulator: Emulator, modules: list[str], name: str, block: str):
    bug = BUGS[name]
    found = [
        find_problem(emulator, changed, bug.checks, block)
        for changed in planted(modules, bug, block)
    ]
    assert len(found) == 2
    for problem in found:
        assert problem is not None, "survived"
        assert re.search(bug.caught, problem), problem


def test_every_barrier_of_the_router_is_missed(emulator: Emulator, needs_nvcc: None):
    """That of a warp is missed only where the warp takes another token after the first."""
    (text,) = nvcc.ptx_of([s for s in nvcc.kernel_sources() if s.stem == "router"])
    entry = _entry(text, "route_tokensIf")
    barriers = list(re.finditer(r"^\s*bar\.(?:warp\.)?sync[^;]*;", text[entry], re.M))
    assert len(barriers) >= 4
    for barrier in barriers:
        start, end = (entry.start + at for at in barrier.span())
        interpreted = Interpreted(emulator, [text[:start] + text[end:]])
        problem = interpreted.find_mismatch(MANY_TOKENS, checks=EVERYTHING)
        assert problem is not None, f"survived: {barrier[0].strip()} at {start}"
        assert "no barrier is between them" in problem
