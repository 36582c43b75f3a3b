"""Whole models on the CPU: a package of moh-deploy, in ONNX Runtime and in OpenVINO, against eager
PyTorch, torch.compile, and a plain torch.onnx.export in both.

All take turns in one process, on the same inputs, and every output is compared with the original's.
On one thread CPU time counts, which neighbours on the machine disturb little; on several, wall
time. Models of the original code need a clone of it (--original); without --checkpoint weights are
random.
"""

import argparse
import itertools
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

from interleaving import figure
from model_candidates import OPENVINO, PEERS, PLAIN_ONNX, Field, all_candidates, original
from model_profile import Profile, profile_both
from model_rows import Row, row_of, table_of
from model_skipped import SkippedWork, skipped_work
from model_subjects import SUBJECTS, NoOriginal, Prepared, Request, Subject, prepare
from model_timing import Parity, measure, reference_of
from op_timing import WrongOutput
from ort_session import Unusable
from printing import environment, print_results, versions
from process_cost import load_average
from rich.table import Table
from run_options import kernels_or_exit, positive

from moh_deploy.errors import MoHDeployError

PACKAGES = ("moh-deploy", "onnxruntime", "openvino", "torch")
PLAIN_PEERS = {PLAIN_ONNX, OPENVINO}
PUBLISHED = [name for name in SUBJECTS if not name.endswith("-form")]


class Result(Protocol):
    """What one of the three questions is answered with."""

    def to_json(self) -> dict[str, object]:
        """Return the answer in plain JSON types."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    start_load = load_average()
    try:
        results = [item for name in options.models for item in _answer(options, SUBJECTS[name])]
    except (MoHDeployError, NoOriginal, Unusable, WrongOutput) as failure:
        print(failure, file=sys.stderr)
        return 1
    about = {
        **environment(start_load),
        "kernels": options.kernels.describe(),
        **versions(PACKAGES),
    }
    rows = [result.to_json() for result in results]
    print_results(about, rows, _tables(results), as_json=options.json, width=160)
    return 0


def _tables(results: Sequence[Result]) -> list[Table]:
    rows = [result for result in results if isinstance(result, Row)]
    others = [result.table() for result in results if isinstance(result, (Profile, SkippedWork))]
    return [*([table_of(rows)] if rows else []), *others]


def _answer(options: argparse.Namespace, subject: Subject) -> list[Result]:
    """Make a model and answer what is asked about it."""
    with _folder(options, subject) as folder:
        prepared = prepare(subject, options.request, Path(folder))
        batches = options.batch or [subject.batch]
        if options.profile:
            return [_profile(options, subject, prepared, batch) for batch in batches]
        if options.skipped:
            return [_skipped(options, subject, prepared, batch) for batch in batches]
        both = itertools.product(batches, options.threads)
        return [_measure(options, subject, prepared, *item) for item in both]


def _profile(
    options: argparse.Namespace, subject: Subject, prepared: Prepared, batch: int
) -> Profile:
    with tempfile.TemporaryDirectory() as scratch:
        lines = profile_both(
            prepared,
            prepared.inputs(batch),
            options.kernels,
            repeats=options.repeats,
            scratch=Path(scratch),
        )
    return Profile(subject.name, batch, lines)


def _skipped(
    options: argparse.Namespace, subject: Subject, prepared: Prepared, batch: int
) -> SkippedWork:
    inputs = prepared.inputs(batch)
    work = skipped_work(prepared.package, inputs, options.kernels, repeats=options.repeats)
    return SkippedWork(subject.name, batch, work)


def _measure(
    options: argparse.Namespace, subject: Subject, prepared: Prepared, batch: int, threads: int
) -> Row:
    """Time everything that can run a model.

    Raises:
        Unusable: Our package cannot run.
        WrongOutput: Something does not compute the original.
    """
    where = f"{subject.name}, batch: {batch}, threads: {threads}"
    print(where, file=sys.stderr)
    inputs = prepared.inputs(batch)
    field = all_candidates(prepared, inputs, options.kernels, options.peers, threads)
    names = [output.name for output in prepared.package.manifest.outputs]
    reference = reference_of(original(prepared, inputs), names, prepared.example)
    runs_ms, parity = measure(field.candidates, reference, threads=threads, repeats=options.repeats)
    _report(field, parity, reference.undecided)
    ms = {name: figure(runs, threads) for name, runs in runs_ms.items()}
    return row_of(subject.name, batch, threads, ms)


def _report(field: Field, parity: dict[str, Parity], undecided: int) -> None:
    for name, reason in field.absent.items():
        print(f"  without {name}: {reason}", file=sys.stderr)
    for name, item in parity.items():
        excuse = f"; another choice of heads ({undecided} tokens are undecided)" * item.excused
        print(f"  {name}: largest error {item.max_abs_error:.2g}{excuse}", file=sys.stderr)


def _folder(options: argparse.Namespace, subject: Subject) -> AbstractContextManager[str | Path]:
    if options.keep is None:
        return tempfile.TemporaryDirectory(prefix="moh-deploy-")
    return nullcontext(options.keep / subject.name)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; `request` and `kernels` of the result say how to make models."""
    parser = _parser()
    options = parser.parse_args(arguments)
    options.models = options.models or PUBLISHED
    options.request = Request(
        options.original,
        tuple(options.set),
        options.checkpoint,
        options.package,
        plain=options.profile
        or (not options.skipped and not PLAIN_PEERS.isdisjoint(options.peers)),
    )
    if len(options.models) > 1 and (options.checkpoint or options.package or options.set):
        parser.error("--checkpoint, --package and --set are of one model; name it with --models.")
    options.kernels = kernels_or_exit(parser, "require", options.library)
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--models", nargs="+", choices=SUBJECTS, metavar="NAME", help=", ".join(SUBJECTS))
    add("--original", type=Path, metavar="DIR", help="a clone of the original repository")
    add("--checkpoint", type=Path, metavar="FILE", help="weights of the model; default: random")
    add("--package", type=Path, metavar="DIR", help="an exported package, instead of a new one")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="as moh-deploy export")
    add("--keep", type=Path, metavar="DIR", help="keep what is exported, reuse the plain export")
    add("--batch", nargs="+", type=positive, metavar="N", help="default: 2, for llama 1")
    add("--threads", nargs="+", type=positive, default=[1, 2], metavar="N")
    add("--repeats", type=positive, default=7, metavar="N", help="rounds; default: 7")
    add("--peers", nargs="*", choices=PEERS, default=PEERS, metavar="NAME", help=", ".join(PEERS))
    add("--library", type=Path, metavar="FILE", help="kernels other than the installation's")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--profile", action="store_true", help="time by operator, plain and ours")
    what.add_argument("--skipped", action="store_true", help="rows and time skipped by each layer")
    add("--json", action="store_true", help="print a list of rows instead of tables")
    return parser


if __name__ == "__main__":
    sys.exit(main())
