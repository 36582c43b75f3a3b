"""Cases of attention by Triton's kernel, as its interpreter runs it: no GPU takes part."""

import pytest

from tests.cuda.abi import TACTICS
from tests.cuda.libraries import Emulator
from tests.cuda.triton import cases
from tests.cuda.triton.child import run_cases
from tests.nightly import nightly

pytestmark = pytest.mark.usefixtures("needs_triton")


@nightly
def test_some_cases_are_right(emulator: Emulator):
    """What a push runs: one in eleven, so by turns in each tactic."""
    verdict = run_cases(emulator.path, "--sets", "contract", "tiles", "--every", "11")
    assert verdict.passed, verdict.output


@nightly
@pytest.mark.parametrize("tactic", TACTICS)
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_every_case_is_right(emulator: Emulator, dtype: str, tactic: str):
    verdict = run_cases(emulator.path, "--dtypes", dtype, "--tactics", tactic)
    assert verdict.passed, verdict.output


@nightly
def test_code_for_blackwell_is_launched_there(emulator: Emulator):
    verdict = run_cases(emulator.path, "--sets", "tiles", "--architecture", "100")
    assert verdict.passed, verdict.output


@nightly
def test_tensors_may_be_larger_than_32_bits_tell(emulator: Emulator):
    options = ("--sets", "tiles", "--match", "seq_len=(50|150)", "--far-apart")
    verdict = run_cases(emulator.path, *options)
    assert verdict.passed, verdict.output
