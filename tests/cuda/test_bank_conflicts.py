"""Lanes of a warp find the words that they access at once in banks of their own.

Loads of matrices are counted in every build: test_contract.py. Here every other access is, in a
build that has each one call the emulator. The compiler is not nvcc: it may cut accesses otherwise.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from moh_deploy.ops.cases import Case
from tests.cuda.drawn import cases_of_several_tiles
from tests.cuda.faults import run_fault
from tests.cuda.kernels import Kernels, plans_of
from tests.cuda.libraries import Emulator, Variant, build
from tests.cuda.run_cases import CUDA_OPS
from tests.nightly import nightly
from tests.ops.cases import OP_CASES

pytestmark = nightly  # a build of its own

ALLOWED = {
    "load_tile_rows": "both ends of a row's keys, once a block: nvcc stores them at once",
    "load_tile": "rows that are not aligned are copied element by element",
    "store_pair": "results in float32, once a tile",
    "write_rows": "results on their way out, once a tile: rows of 72 elements",
    "window_weight": "gathered by what each pair of tokens is to the other",
}
NAMES = "plain|head_dim|odd_sizes|wide|grouped|many|large|long"
CASES = [
    *cases_of_several_tiles(),
    *(case for op in CUDA_OPS for case in OP_CASES[op] if re.search(NAMES, case.name)),
]


def counting_library() -> Path:
    return build(Variant("banks"), definitions=("-DMOH_COUNT_BANKS=ON",))


@pytest.fixture(scope="module")
def counting(emulator: Emulator) -> Emulator:
    if shutil.which("addr2line") is None:
        pytest.skip("addr2line was not found")
    return Emulator(counting_library())


def _functions_with_conflicts(emulator: Emulator) -> set[str]:
    """The innermost functions, by name alone, of the instructions that had a conflict."""
    lines = emulator.library.moh_emulator_bank_conflicts().decode().splitlines()
    # A call's address is that of the instruction behind it.
    offsets = [hex(int(line.split()[0]) - 1) for line in lines]
    if not offsets:
        return set()
    command = ["addr2line", "-f", "-s", "-C", "-e", str(emulator.path), *offsets]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return {_bare(name) for name in names[::2]}


def _bare(name: str) -> str:
    """ "f" of "void moh::C<int, X<2> >::f<3>(float*)"."""
    while "<" in name:
        name = re.sub(r"<[^<>]*>", "", name)
    return name.split("(")[0].split("::")[-1].split()[-1]


def _run(emulator: Emulator, case: Case) -> set[str]:
    kernels, found = Kernels(emulator.library), set()
    for plan in plans_of(case):
        with emulator.configured():
            assert kernels.find_mismatch(case, plan) is None
            found |= _functions_with_conflicts(emulator)
    return found


@pytest.mark.parametrize("case", CASES, ids=str)
def test_only_known_places_have_conflicts(counting: Emulator, case: Case):
    assert _run(counting, case) <= ALLOWED.keys()


def test_words_of_one_bank_are_a_conflict(counting: Emulator):
    for correct in (True, False):
        with counting.configured():
            run_fault(counting, "words_in_one_bank", correct=correct)
            assert bool(_functions_with_conflicts(counting)) is not correct
