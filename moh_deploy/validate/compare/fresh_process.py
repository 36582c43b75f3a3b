"""Compare a package with its vectors in a process that knows neither torch nor the user's code.

What is proven there is what a user of the package will see, and the memory of the two worlds does
not add up.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import numpy as np

from moh_deploy.errors import ValidationError
from moh_deploy.package.interface import mask_name
from moh_deploy.runtime.kernel_use import Kernels, KernelUse
from moh_deploy.runtime.layer_runs import LayerRun
from moh_deploy.runtime.onnxruntime.session import runtime_name
from moh_deploy.system.isolate import EarlyProcess, isolated, started_early
from moh_deploy.system.progress import SilentProgress
from moh_deploy.validate.compare.parity_report import ParityReport
from moh_deploy.validate.compare.policy import BUILT_IN_POLICY
from moh_deploy.validate.compare.verify_runs import WhatToRun, verify_runs
from moh_deploy.validate.reference.samples import only_padding, padding_place
from moh_deploy.validate.reference.subject import Subject, read_subject
from moh_deploy.validate.reference.valid_tokens import TokenCount


@dataclass(frozen=True)
class ProvenRun:
    """The agreement of a package with the original model, run in one way."""

    vector_sets: int
    max_abs_error: float  # Largest absolute difference of any output element over all vectors
    routing_agreement: float  # Share of equal (token, head) decisions, near-ties left out
    kernel_nodes: int
    function_nodes: int
    layer_runs: tuple[LayerRun, ...]
    kernels: KernelUse
    # How many were left out, being padding; None if it is not known which are.
    tokens: TokenCount | None


@dataclass(frozen=True)
class Way:
    """One way to run a package."""

    kernels: Kernels
    # Compare with the first so many runs of the original only; None takes all.
    vectors: int | None = None


Prove = Callable[[Path, Sequence[Way]], tuple[ProvenRun, ...]]
"""What `prove` does of a package."""


@contextmanager
def early_prover() -> Iterator[Prove]:
    """Yield `prove`, good for one package, whose process starts at once and imports what it needs.

    Meanwhile the package can be made: the imports take as long as the runs of a small model.
    """
    with started_early(get_ready) as early:
        yield partial(prove, early=early)


def get_ready() -> None:
    """Import what a proof needs that this module does not import itself."""
    runtime_name()


def prove(
    root: Path, ways: Sequence[Way], early: EarlyProcess | None = None
) -> tuple[ProvenRun, ...]:
    """Verify a package in several ways, each as `moh-deploy verify` does.

    One process does them all, since its start and imports cost more than a small model's runs.

    Args:
        root: The package, which may still be staged.
        ways: In this order, until the first that does not agree.
        early: The process to do it in; None starts one.

    Returns:
        How well it agrees, for each way.

    Raises:
        ValidationError: It does not agree.
        MoHDeployError: The comparison failed, with the error of that process.
    """
    # This process has torch and the user's code loaded; the new one imports neither.
    found = isolated(proven, root, tuple(ways), early=early)
    return found.required("the process that compares the package")


def proven(root: Path, ways: Sequence[Way]) -> tuple[ProvenRun, ...]:
    """Verify a package in this process; as `prove` otherwise."""
    # Read once: what it is run by has no part in it.
    package, found = read_subject(root, None, "off", staged=True), []
    for way in ways:
        subject = replace(package, kernels=way.kernels)
        # No files, no other reference, built-in tolerances: `verify` as it is without options.
        what = WhatToRun((), way.vectors, subject.package.manifest.valid_tokens)
        report = _verified(subject, what)
        if report.failure is not None:
            raise _told_apart(report.failure, subject, what)
        assert report.routing_agreement is not None  # It is compared with recorded runs.
        figures = {field.name: getattr(report, field.name) for field in fields(ProvenRun)}
        found.append(ProvenRun(**figures))
    return tuple(found)


def _verified(subject: Subject, what: WhatToRun) -> ParityReport:
    progress = SilentProgress()
    return verify_runs(subject, what, against=(), policy=BUILT_IN_POLICY, progress=progress)


def _told_apart(failure: ValidationError, subject: Subject, what: WhatToRun) -> ValidationError:
    """Return the failure, and say of it whether all that differs lies where a mask is 0."""
    runs = subject.package.vectors[: what.vectors]
    masks = []
    for spec in subject.package.manifest.inputs:
        arrays = [run.inputs[spec.name] for run in runs]
        may_be_mask = all(array.ndim == 2 and np.isin(array, (0, 1)).all() for array in arrays)
        # A mask without padding leaves nothing out.
        masks += [
            mask_name(spec.name, marks_padding=padding)
            for padding in (False, True)
            if may_be_mask and any((array == padding).any() for array in arrays)
        ]
    for name in masks if what.valid_tokens is None else ():
        if _verified(subject, replace(what, valid_tokens=name)).equal:
            where = f"{failure.message} It is so only {padding_place(name)}."
            return ValidationError(where, hint=only_padding([name]).strip())
    return failure
