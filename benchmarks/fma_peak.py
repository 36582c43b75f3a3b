"""The float32 multiply-add peak of one core, measured by a loop that does nothing else."""

import ctypes
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# More chains than latency times throughput of any core of today, as many as its registers hold.
_SOURCE = """
#if defined(__AVX512F__)
enum { LANES = 16, CHAINS = 24 };
#elif defined(__AVX__)
enum { LANES = 8, CHAINS = 12 };
#elif defined(__aarch64__)
enum { LANES = 4, CHAINS = 24 };
#else
enum { LANES = 4, CHAINS = 12 };
#endif
#define UNROLLED _Pragma("GCC unroll 24")
typedef float Vector __attribute__((vector_size(4 * LANES)));

const int flops_a_round = 2 * LANES * CHAINS;

void multiply_add(long rounds, float factor, float addend, float *result) {
  Vector chain[CHAINS], factors = factor - (Vector){0}, addends = addend - (Vector){0};
  UNROLLED for (int i = 0; i < CHAINS; i++) chain[i] = addends + (float)i;
  for (long round = 0; round < rounds; round++)
    UNROLLED for (int i = 0; i < CHAINS; i++) chain[i] = chain[i] * factors + addends;
  UNROLLED for (int i = 1; i < CHAINS; i++) chain[0] += chain[i];
  *result = chain[0][0];
}
"""
_FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC")
_SAMPLES = 10
_ROUNDS = 100_000

Peak = Callable[[], float]
"""Measures the peak and returns it in GFLOP/s."""


class NoPeak(Exception):
    """The peak cannot be measured here; the message says why."""


def compile_peak() -> Peak:
    """Return what measures the peak.

    Raises:
        NoPeak: The machine has no C compiler, or one that refuses the loop.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        raise NoPeak("there is no C compiler 'cc'")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "multiply_add.so"
        command = [compiler, *_FLAGS, "-x", "c", "-", "-o", str(library)]
        done = subprocess.run(command, input=_SOURCE, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise NoPeak(f"'cc' refuses the loop: {done.stderr.strip()[-500:]}")
        loop = ctypes.CDLL(str(library))
    flops = ctypes.c_int.in_dll(loop, "flops_a_round").value * _ROUNDS
    return lambda: max(_sample(loop, flops) for _ in range(_SAMPLES))


def _sample(loop: ctypes.CDLL, flops: int) -> float:
    result = ctypes.c_float()
    start = time.thread_time_ns()
    loop.multiply_add(
        ctypes.c_long(_ROUNDS), ctypes.c_float(0.5), ctypes.c_float(1.0), ctypes.byref(result)
    )
    return flops / (time.thread_time_ns() - start)
