"""Runs kernels of plugins/cuda/emu/faults.cu in a process that a sanitizer watches.

python -m tests.cuda.run_fault LIBRARY {faulty|correct} SEED NAME ...
"""

import sys
from pathlib import Path

from tests.cuda.faults import run_fault
from tests.cuda.libraries import Emulator

if __name__ == "__main__":
    library, which, seed, *names = sys.argv[1:]
    emulator = Emulator(Path(library))
    for name in names:
        with emulator.configured(seed=int(seed), late_copies=int(seed) % 2):
            run_fault(emulator, name, correct=which == "correct")
