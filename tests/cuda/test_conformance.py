"""Each primitive that kernels are made of computes what it should, in the emulator.

The formulas are written independently of it. Golden vectors, recorded on a GPU, take the place of
opinion: tests/cuda/golden.py.
"""

import numpy as np
import pytest

from tests.cuda import conformance, golden
from tests.cuda.conformance import PRIMITIVES
from tests.cuda.golden import GOLDEN
from tests.cuda.libraries import Emulator
from tests.nightly import sampled


def test_every_primitive_has_a_formula(emulator: Emulator):
    assert conformance.listed(emulator.library).keys() == PRIMITIVES.keys()


@sampled(4)
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("late_copies", [0, 1])
@pytest.mark.parametrize("name", PRIMITIVES)
def test_primitive_is_its_formula(emulator: Emulator, name: str, seed: int, late_copies: int):
    words = conformance.inputs(name)
    with emulator.configured(seed=seed, late_copies=late_copies):
        got = conformance.run(emulator.library, name, words)
    problem = conformance.find_difference(name, words, got)
    assert problem is None, problem


def test_primitives_are_what_a_gpu_computed(emulator: Emulator):
    if not GOLDEN.exists():
        pytest.skip(f"no GPU has recorded {GOLDEN.name} yet")
    recorded = golden.read()
    assert recorded.keys() == PRIMITIVES.keys()
    for name, vectors in recorded.items():
        got = conformance.run(emulator.library, name, vectors.words_in)
        problem = conformance.find_difference(name, vectors.words_in, got, vectors.words_out)
        assert problem is None, problem


@pytest.mark.parametrize(
    ("name", "in_words", "out_words"),
    [("no_such_primitive", 32, 32), ("votes", 31, 192), ("votes", 64, 192), ("votes", 0, 0)],
)
def test_unknown_names_and_sizes_are_refused(
    emulator: Emulator, name: str, in_words: int, out_words: int
):
    words, out = np.zeros(in_words, np.uint32), np.zeros(out_words, np.uint32)
    status = emulator.library.moh_cuda_conformance(
        name.encode(), words.ctypes.data, words.nbytes, out.ctypes.data, out.nbytes, None
    )
    assert status == -1
