"""Options that the benchmarks of kernels share, and the types of their values."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from moh_deploy.errors import MoHDeployError
from moh_deploy.runtime.kernel_use import Kernels, KernelUse, choose_kernels


def add_run_options(
    parser: argparse.ArgumentParser, *, threads: Sequence[int], rounds: int
) -> None:
    """Add what to measure with and how often; the arguments are defaults."""
    add = parser.add_argument
    add("--threads", nargs="+", type=positive, default=[*threads], metavar="N")
    add("--rounds", type=positive, default=rounds, metavar="N")
    add("--library", type=Path, metavar="FILE", help="kernels other than the installation's")
    add("--json", action="store_true", help="print a list of rows")


def kernels_or_exit(
    parser: argparse.ArgumentParser,
    kernels: Kernels,
    library: Path | None,
    *,
    instruction_set: str | None = None,
) -> KernelUse:
    """Choose the kernels that the command line asks for, or end with what is wrong with them."""
    try:
        return choose_kernels(kernels, library=library, instruction_set=instruction_set)
    except MoHDeployError as error:
        parser.error(str(error))


def positive(text: str) -> int:
    """Read a number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}; expected at least 1")
    return value


def fraction(text: str) -> float:
    """Read a number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share; expected 0 to 1")
    return value
