"""Count the instructions that telemetry adds to a run: `python benchmarks/telemetry_cost.py DIR`.

Time is noisier than the thousandth parts that are looked for, so valgrind counts instructions. It
knows no AVX-512: kernels are those for AVX2, which take more of them than the fastest would.
"""

import argparse
import ctypes
import gc
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.models import PackageDir
from moh_deploy.serving import source
from moh_deploy.serving.served_model import ServedModel
from moh_deploy.serving.telemetry import Telemetry
from moh_deploy.system.npz import Array

_CONTROL = """
#include <valgrind/callgrind.h>
void begin(void) { CALLGRIND_START_INSTRUMENTATION; CALLGRIND_ZERO_STATS; }
void end(const char *name) { CALLGRIND_DUMP_STATS_AT(name); CALLGRIND_STOP_INSTRUMENTATION; }
"""
_WAYS = ("bare", "not read", "read")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", type=Path)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--runs", type=int, default=10, help="of each way in a round")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--warm", type=int, default=10, help="runs of each way before")
    parser.add_argument("--once", action="store_true", help="open it once, as a large model is")
    parser.add_argument("--sample-every", type=int, default=128)
    parser.add_argument("--counted-in", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.counted_in is not None:
        _run(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        found = list(_counted(options, Path(folder)))
    # What is counted besides the run itself comes and goes: the least of all rounds is free of it.
    counts = {way: min(count for item, count in found if item == way) for way in _WAYS}
    bare, not_read, read = (counts[way] / options.runs for way in _WAYS)
    every = options.sample_every
    print(f"{options.package}, batch {options.batch}, one thread, {options.rounds} rounds")
    for way in _WAYS:
        print(f"{way:16} {counts[way] / options.runs / 1e6:10.3f} M instructions a run")
    print(f"not read: {(not_read - bare) / bare:+.3%}")
    print(f"one run in {every} read: {(not_read - bare + (read - not_read) / every) / bare:+.3%}")


def _counted(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, int]]:
    """Run this file in valgrind, and yield each way and its instructions."""
    source, library = folder / "control.c", folder / "control.so"
    source.write_text(_CONTROL)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    out = folder / "counts"
    command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}"]
    given = [options.package, f"--batch={options.batch}", f"--runs={options.runs}"]
    given += [f"--rounds={options.rounds}", f"--warm={options.warm}"]
    given += ["--once"] if options.once else []
    command += [sys.executable, __file__, *map(str, given), f"--counted-in={library}"]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    subprocess.run(command, check=True, env=environment, capture_output=True)
    for path in sorted(folder.glob("counts*")):
        text = path.read_text()
        for way in _WAYS:
            if f"desc: Trigger: Client Request: {way}\n" in text:
                (total,) = (line for line in text.splitlines() if line.startswith("totals:"))
                yield way, int(total.split()[1])


def _run(options: argparse.Namespace) -> None:
    control = ctypes.CDLL(str(options.counted_in))
    model = PackageDir(options.package)
    inputs: Mapping[str, Array] = {
        name: np.resize(array, (options.batch, *array.shape[1:]))
        for name, array in model.package.vectors[0].inputs.items()
    }
    telemetry = {
        way: Telemetry(model.package, model="m", sample_every=every)
        for way, every in (("not read", 0), ("read", 1))
    }
    if options.once:
        source.MOST_BYTES_TWICE = 0
    # As `open_served` opens it with telemetry, and without.
    plain, counted = (
        source.open_model(model, inner, Variant(kernels="require", threads=1))
        for inner in ((), telemetry["read"].inner)
    )
    served: dict[str, ServedModel] = {}
    for way in _WAYS:
        observers = (telemetry[way],) if way in telemetry else ()
        served[way] = ServedModel(model, counted if observers else plain, observers)
        # Python makes bytecode faster that runs often.
        for _ in range(options.warm):
            served[way].answer(inputs)
    # Collections come when they like.
    gc.collect()
    gc.disable()
    for _ in range(options.rounds):
        for way in _WAYS:
            control.begin()
            for _ in range(options.runs):
                served[way].answer(inputs)
            control.end(way.encode())


if __name__ == "__main__":
    main()
