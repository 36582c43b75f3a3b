"""Say which layer of a package diverges first, and which nodes need float32; repair it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from moh_deploy.config.dtypes import dtype_named
from moh_deploy.errors import ConfigError
from moh_deploy.graph.float32_form import LOW
from moh_deploy.package import OnnxPackage, check_package_output
from moh_deploy.runtime.kernel_use import Kernels
from moh_deploy.runtime.lowered_package import lowered
from moh_deploy.runtime.open_runner import find_deployed
from moh_deploy.runtime.quantized_package import INT8, lowered_to_int8
from moh_deploy.system.progress import Progress, SilentProgress
from moh_deploy.system.staging import scratch_directory
from moh_deploy.validate.bisection.bisection import check_packages, find_and_repair
from moh_deploy.validate.bisection.experiments import Experiments, answered
from moh_deploy.validate.bisection.mixed_precision import Form
from moh_deploy.validate.bisection.report import BisectReport
from moh_deploy.validate.compare.policy import BUILT_IN_POLICY, read_policy
from moh_deploy.validate.reference.samples import read_samples, recorded_samples

MOST_RUNS = 100


def bisect(
    package_dir: Path | str,
    output: Path | str | None = None,
    *,
    reference: Path | str | None = None,
    to: str | None = None,
    target: float | None = None,
    kernels: Kernels = "auto",
    inputs: Sequence[Path | str] = (),
    vectors: int | None = None,
    policy: Path | str | None = None,
    max_runs: int = MOST_RUNS,
    progress: Progress | None = None,
) -> BisectReport:
    """Find where a package first parts from the original model, and what keeps it from doing so.

    The reference gates are fed to every layer, so that what is found is no consequence of another
    choice of heads. What is wrong is told apart: kernels, by running the function bodies;
    optimisations, by leaving them out; rounding, by running the same graph in float32. What remains
    is the graph itself, and is found by comparing it with `reference`, or, without one, narrowed
    down to the nodes between the recorded values that prove something.

    Args:
        package_dir: The package.
        output: Where to write the package again with the nodes in float32 that need it.
        reference: A float32 package of the same model: the one that DIR was lowered from, or one
            that is known to be right.
        to: `float16`, `bfloat16` or `int8` lowers a float32 package first, as `precision` does,
            which writes none that is not right; it is its own reference then.
        target: How far outputs may be off, as a share of their largest value (at least of 1);
            None for what `verify` allows.
        kernels: What runs MoH nodes, see `Variant`.
        inputs: npz files, or directories of them, to run besides the recorded inputs. What should
            come out is what the package computes in float32, or, if it is in float32, what the
            reference computes; members named like outputs are taken as they are.
        vectors: Compare with the first so many recorded runs only; None takes all.
        policy: YAML file of tolerances over the built-in table.
        max_runs: How many packages may be made and run to find the nodes.
        progress: What to report steps to.

    Returns:
        What was found. Look at `diverges` and `repair`; `failure` is the error that says no.

    Raises:
        PackageError: Not a package, or the output cannot be written.
        ConfigError: An engine, an option of another form, more `vectors` than there are recorded
            runs, or a reference of another model or one that differs from the recorded runs itself.
        ValidationError: The package has no recorded runs, or `verify` cannot tell whether it
            differs from them.
        BackendError: The runtime failed.
    """
    progress, root = progress or SilentProgress(), Path(package_dir)
    written = None if output is None else Path(output)
    # Checked before the package is read, which would only say that it is not a package.
    if find_deployed(root).is_compiled:
        raise ConfigError(
            f"{root} is an engine, whose inner values cannot be seen; expected a package.",
            hint="Bisect the package that it was built from: what diverges there diverges here.",
        )
    if target is not None and not 0 < target < 1:
        raise ConfigError(f"target is {target}, expected a share between 0 and 1, such as 0.001.")
    if vectors is not None and vectors < 1:
        raise ConfigError(f"vectors is {vectors}, expected at least 1: nothing would be compared.")
    if max_runs < 2:
        raise ConfigError(f"max_runs is {max_runs}, expected at least 2.")
    if written is not None:
        check_package_output(written, made_of=root if reference is None else Path(reference))
    rules = BUILT_IN_POLICY if policy is None else read_policy(Path(policy))
    with progress.step("reading the package"):
        package = OnnxPackage.open(root)
        believed = None if reference is None else OnnxPackage.open(reference)
        check_packages(package, believed, written, to, inputs)
        files = read_samples([Path(path) for path in inputs], package.manifest)
    form: Form | None = None
    with scratch_directory("moh-deploy-bisect") as folder:
        if to is not None:
            with progress.step("lowering the precision"):
                # What is bisected is the lowered package; the float32 one is what it should
                # compute. Of half precision the float32 form is made where it is needed.
                believed, place = package, folder / "lowered"
                if dtype_named(to, (*LOW, INT8), option="to") == INT8:
                    package, form = lowered_to_int8(package, place)
                else:
                    package = lowered(package, to, place)
        samples = recorded_samples(package.vectors, vectors)
        runs = Experiments(package, believed, samples, rules, target, kernels, folder, form)
        if runs.believed is not None and files:
            with progress.step("computing in float32 what should come out"):
                # Where a file holds no outputs, the package in float32 says what should come out.
                runs.samples = (*samples, *answered(runs.believed, files))
        report = find_and_repair(runs, folder, written, max_runs, progress)
    notes = list(report.notes)
    if to is not None and not report.diverges:
        notes = [f"`moh-deploy precision DIR --to {to} --output DIR` writes it as it is."]
    if to == INT8 and report.repair is not None:
        kept = [shlex.quote(node.place.node) for node in report.repair.mixed.nodes]
        names = " ".join(f"--float32 {name}" for name in kept)
        notes.append(
            f"`moh-deploy precision DIR --to int8 {names} --output DIR` writes the same package."
        )
    return replace(report, package=root, notes=tuple(notes))
