"""A decoder's whole prompt: time and peak memory of ours beside what a user would run instead.

    python benchmarks/decoder_prompt.py --keep build/prompt --original MoH
    python benchmarks/decoder_prompt.py --keep build/prompt --forms float --lengths 64 --rounds 1

The LLaMA form with its mask written in three ways (prompt_decoder.py), and, with --original, the
published code of MoH-LLaMA3 with fewer and narrower layers. Weights are random. Each candidate runs
in a process of its own, which says what memory its runs add to the loaded model; processes take
turns. Logits are compared with eager PyTorch's. Ours requires its kernels.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import numpy as np
from interleaving import figure, interleaved_ms
from model_candidates import COMPILE, EAGER, MOH, MOH_OPENVINO, OURS, PEERS, candidate
from op_timing import WrongOutput, check_error
from ort_session import Unusable
from printing import environment, print_results, versions
from process_cost import load_average
from prompt_forms import FORMS, LLAMA3, Form, Sizes
from rich.table import Table
from run_options import positive

import moh_deploy
from moh_deploy.errors import MoHDeployError

CANDIDATES = (MOH, MOH_OPENVINO, *PEERS)
# Logits of so many positions are compared, in the median: a tie may open another head at some.
COMPARED = 64
EXACT = 1e-4

_Said: TypeAlias = dict[str, Any]  # what the process of a candidate prints, as JSON


@dataclass(frozen=True)
class Row:
    """What one candidate took for a prompt.

    Attributes:
        form: How the mask is written, or `moh-llama3`.
        ms: CPU time, median, on one thread; wall time, minimum, on several; None if it cannot run.
        run_mib: Memory that runs take above what is resident with the model loaded, at the peak.
        peak_mib: Resident memory of the process at its peak, since its start.
        error: Median over positions of the largest difference from eager PyTorch's logits, as a
            share of the largest logit.
        absent: Why it cannot run.
    """

    form: str
    length: int
    threads: int
    name: str
    ms: float | None = None
    run_mib: float | None = None
    peak_mib: float | None = None
    error: float | None = None
    absent: str | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    if options.child is not None:
        with redirect_stdout(sys.stderr):
            found = _child(_form(options.keep, options.forms[0], options), options)
        print(json.dumps(found))
        return 0
    start_load = load_average()
    rows: list[Row] = []
    with _folder(options.keep) as root:
        try:
            for name in options.forms:
                form = _form(Path(root), name, options)
                form.export()
                for length in options.lengths:
                    for threads in options.threads:
                        rows += _measured(Path(root), form, length, threads, options)
        except (MoHDeployError, Unusable, WrongOutput) as failure:
            print(failure, file=sys.stderr)
            return 1
    about = {
        **environment(start_load),
        **versions(("moh-deploy", "onnxruntime", "openvino", "torch", "transformers")),
        "measured": str(Path(moh_deploy.__file__).parent),
        "sizes": str(options.sizes),
    }
    dicts, tables = [asdict(row) for row in rows], [_table(rows)]
    print_results(about, dicts, tables, as_json=options.json, width=130)
    return 0


# The process of one candidate.


def _child(form: Form, options: argparse.Namespace) -> _Said:
    """Run one candidate; its logits go to a file."""
    (length,), (threads,) = options.lengths, options.threads
    prepared = form.prepared() if options.child in (EAGER, COMPILE) else form.exported()
    try:
        loaded = candidate(options.child, prepared, form.inputs(length), threads)
        before, highest = _resident_mib("VmRSS"), _resident_mib("VmHWM")
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
        (runs_ms,) = interleaved_ms([loaded.run], threads=threads, rounds=options.repeats)
        of_runs = _resident_mib("VmHWM")
        logits = loaded.read(loaded.run())[0][0]  # [S, vocabulary]
    except (Unusable, MoHDeployError, RuntimeError) as error:
        return {"absent": " ".join(str(error).split())[:300]}
    places = np.linspace(0, length - 1, min(length, COMPARED)).astype(int)
    np.save(_logits_file(form, options.child, length), logits[places])
    return {"ms": runs_ms, "run_mib": of_runs - before, "peak_mib": max(highest, of_runs)}


def _resident_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    (found,) = (line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return int(found) / 1024


# The process that starts them.


def _measured(
    root: Path, form: Form, length: int, threads: int, options: argparse.Namespace
) -> list[Row]:
    """Let the processes of all candidates take turns.

    Raises:
        Unusable: One of ours that is asked for cannot run in ONNX Runtime.
        WrongOutput: A candidate computes something else than eager PyTorch.
    """
    # What others are compared with has to be of this run.
    for name in options.candidates:
        _logits_file(form, name, length).unlink(missing_ok=True)
    found: dict[str, list[_Said]] = {name: [] for name in options.candidates}
    order = random.Random(0)
    for turn in range(options.rounds):
        for name in order.sample(options.candidates, len(options.candidates)):
            print(f"{form.name}, {length}, {threads}: {name}, round {turn + 1}", file=sys.stderr)
            if not any("absent" in said for said in found[name]):
                found[name].append(_started(root, form, length, threads, name, options))
    if (why := found.get(MOH, [{}])[0].get("absent")) is not None:
        raise Unusable(f"{form.name}, {length} tokens: {why}")
    return [_row(form, length, threads, name, made) for name, made in found.items()]


def _started(
    root: Path, form: Form, length: int, threads: int, name: str, options: argparse.Namespace
) -> _Said:
    """Start the process of a candidate and return what it says."""
    command = [sys.executable, __file__, "--child", name, "--keep", str(root)]
    command += ["--forms", form.name, "--lengths", str(length), "--threads", str(threads)]
    command += ["--repeats", str(options.repeats)]
    if options.original is not None:
        command += ["--original", str(options.original)]
    for field in fields(Sizes):
        command += [f"--{field.name.replace('_', '-')}", str(getattr(form.sizes, field.name))]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode != 0:
        words = process.stderr.strip().splitlines()[-1:]
        return {"absent": " ".join([f"its process ended with {process.returncode}:", *words])}
    said: _Said = json.loads(process.stdout)
    return said


def _row(form: Form, length: int, threads: int, name: str, turns: Sequence[_Said]) -> Row:
    """Return what the processes of a candidate said together.

    Raises:
        WrongOutput: It computes something else than eager PyTorch.
    """
    absent = next((said["absent"] for said in turns if "absent" in said), None)
    if absent is not None:
        print(f"{form.name}, {length} tokens, without {name}: {absent}", file=sys.stderr)
        return Row(form.name, length, threads, name, absent=absent)
    runs_ms = [ms for said in turns for ms in said["ms"]]
    return Row(
        form.name,
        length,
        threads,
        name,
        ms=figure(runs_ms, threads),
        run_mib=median(said["run_mib"] for said in turns),
        peak_mib=median(said["peak_mib"] for said in turns),
        error=_error(form, name, length),
    )


def _error(form: Form, name: str, length: int) -> float | None:
    """Return how far logits are from eager PyTorch's; None where that did not run."""
    reference = _logits_file(form, EAGER, length)
    if not reference.exists():
        return None
    expected, got = np.load(reference), np.load(_logits_file(form, name, length))
    error = float(np.median(np.abs(got - expected).max(axis=-1)) / np.abs(expected).max())
    return check_error(f"{form.name}, {length} tokens, {name}", error, EXACT)


def _logits_file(form: Form, name: str, length: int) -> Path:
    return form.folder / f"logits-{name}-{length}.npy"


def _table(rows: Sequence[Row]) -> Table:
    clock = "CPU time on one thread (medians), wall time on several (minima)"
    headings = ("form", "tokens", "threads", "", "ms", "over ours", "run MiB", "peak MiB", "error")
    table = Table(*headings, title=f"a prompt: {clock}")
    for row in rows:
        ours = [
            other.ms
            for other in rows
            if (other.form, other.length, other.threads) == (row.form, row.length, row.threads)
            and other.name in OURS
            and other.ms is not None
        ]
        cells = ["-"] * 5
        if row.ms is not None:
            error = "-" if row.error is None else f"{row.error:.0e}"
            ratio = f"{row.ms / min(ours):.2f}x"
            cells = [f"{row.ms:.4g}", ratio, f"{row.run_mib:.0f}", f"{row.peak_mib:.0f}", error]
        table.add_row(row.form, str(row.length), str(row.threads), row.name, *cells)
    return table


def _form(root: Path, name: str, options: argparse.Namespace) -> Form:
    # A folder for each size: what lies there is not made anew.
    words = "-".join(map(str, asdict(options.sizes).values()))
    return Form(name, root / f"{name}-{words}", options.sizes, options.original)


def _folder(keep: Path | None) -> AbstractContextManager[str | Path]:
    if keep is None:
        return tempfile.TemporaryDirectory(prefix="moh-deploy-")
    return nullcontext(keep)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--forms", nargs="+", choices=FORMS, metavar="NAME", help=", ".join(FORMS))
    add("--original", type=Path, metavar="DIR", help="a clone of the original repository")
    add("--lengths", nargs="+", type=positive, default=[512, 2048, 8192], metavar="N")
    add("--threads", nargs="+", type=positive, default=[1, 2], metavar="N")
    add("--candidates", nargs="+", choices=CANDIDATES, default=CANDIDATES, metavar="NAME")
    add("--rounds", type=positive, default=3, metavar="N", help="processes of each candidate")
    add("--repeats", type=positive, default=3, metavar="N", help="timed runs of a process")
    add("--keep", type=Path, metavar="DIR", help="where models are kept for the next time")
    add("--json", action="store_true", help="print a list of rows")
    add("--child", choices=CANDIDATES, help=argparse.SUPPRESS)
    for field in fields(Sizes):
        add(f"--{field.name.replace('_', '-')}", type=positive, default=field.default, metavar="N")
    options = parser.parse_args(arguments)
    if options.forms is None:
        options.forms = [name for name in FORMS if name != LLAMA3 or options.original is not None]
    if LLAMA3 in options.forms and options.original is None:
        parser.error(f"{LLAMA3} needs --original: a clone of https://github.com/SkyworkAI/MoH.")
    options.sizes = Sizes(*(getattr(options, field.name) for field in fields(Sizes)))
    return options


if __name__ == "__main__":
    sys.exit(main())
