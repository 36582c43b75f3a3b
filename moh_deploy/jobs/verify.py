"""Prove that a package computes what it should."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from moh_deploy.backends.onnxruntime import open_session
from moh_deploy.backends.ort_variants import OrtVariants
from moh_deploy.backends.runner import Kernels, Runner
from moh_deploy.backends.trt.engine_reading import is_engine_dir, read_engine_dir
from moh_deploy.errors import ConfigError
from moh_deploy.jobs.engine_runs import EngineRunner, engines_package, fitting, open_engine
from moh_deploy.npz import Array
from moh_deploy.package import OnnxPackage, VectorSet
from moh_deploy.progress import Progress, SilentProgress
from moh_deploy.validate.parity import RECORDED, compare
from moh_deploy.validate.parity_report import ParityReport, combined
from moh_deploy.validate.policy import BUILT_IN_POLICY, Policy, read_policy
from moh_deploy.validate.user_vectors import UserVectors, read_user_vectors
from moh_deploy.validate.variants import Variants


def verify(
    package_dir: Path | str,
    *,
    inputs: Sequence[Path | str] = (),
    kernels: Kernels = "auto",
    vectors: int | None = None,
    package: Path | str | None = None,
    policy: Path | str | None = None,
    progress: Progress | None = None,
) -> ParityReport:
    """Compare what ONNX Runtime, or an engine, computes with a reference.

    Without `inputs` the reference is what the original model computed when the package was made.
    For a file in `inputs` it is the expected outputs that the file holds, or, if it holds none, the
    package's own function bodies run with all optimisations off: that proves that kernels and graph
    optimisations change nothing, not that the package equals the original model.

    An engine gives no gates, so only outputs are compared, on the recorded runs of sizes that it
    was built for.

    Args:
        package_dir: The package, or the engine directory.
        inputs: npz files. Members are named like the model's inputs, or in their order, and like
            its outputs for expected outputs.
        kernels: What runs MoH nodes, see `open_session` and `open_engine`.
        vectors: Compare with the first so many recorded runs only; None takes all. The first is the
            one at the example's sizes.
        package: The package that an engine was built from; for a package, None.
        policy: YAML file of tolerances over the built-in table, see `read_policy`.
        progress: What to report steps to.

    Returns:
        The comparison. Look at `equal`, or call `raise_if_unequal`.

    Raises:
        PackageError: Not a package, or one that has changed since it was written.
        ConfigError: An input file does not fit the model, or `vectors` is below 1 or given
            together with `inputs`.
        BackendError: The runtime failed, or the engine cannot run here.
    """
    progress, root = progress or SilentProgress(), Path(package_dir)
    _check_vectors(vectors, inputs)
    rules = BUILT_IN_POLICY if policy is None else read_policy(Path(policy))
    paths = tuple(map(Path, inputs))
    if is_engine_dir(root):
        source = None if package is None else Path(package)
        return _verify_engine(root, source, paths, kernels, vectors, progress, rules)
    if package is not None:
        raise ConfigError(f"package is {package}, but {root} is no engine: leave it out.")
    with progress.step("reading the package"):
        opened = OnnxPackage.open(root)
        files = [(path, read_user_vectors(path, opened.manifest)) for path in paths]
    with progress.step("loading the model"):
        runner = open_session(opened, kernels=kernels, extra_outputs=opened.gate_names)
    with progress.step("comparing"):
        variants = OrtVariants(opened, kernels)
        if not files:
            sets = opened.vectors[:vectors]
            return compare(opened, runner, sets, variants=variants, policy=rules)
        return combined(
            [_compare_file(opened, runner, path, user, rules, variants) for path, user in files]
        )


def _verify_engine(
    root: Path,
    source: Path | None,
    paths: tuple[Path, ...],
    kernels: Kernels,
    vectors: int | None,
    progress: Progress,
    policy: Policy,
) -> ParityReport:
    with progress.step("reading the engine and its package"):
        package = engines_package(root, read_engine_dir(root), source)
        files = [(path, read_user_vectors(path, package.manifest)) for path in paths]
    with progress.step("loading the engine"):
        runner = open_engine(root, kernels)
    with progress.step("comparing"), runner.engine as engine:
        if not files:
            recorded = fitting(engine, package.vectors)[:vectors]
            reference = f"{RECORDED}, those of sizes that the engine was built for"
            return compare(
                package, runner, recorded, reference=reference, outputs_only=True, policy=policy
            )
        return combined(
            [_compare_file(package, runner, path, user, policy) for path, user in files]
        )


def _check_vectors(vectors: int | None, inputs: Sequence[Path | str]) -> None:
    if vectors is not None and vectors < 1:
        raise ConfigError(f"vectors is {vectors}, expected at least 1: nothing would be compared.")
    if vectors is not None and inputs:
        raise ConfigError(
            "vectors chooses among recorded runs, and inputs replaces them: give one."
        )


def _compare_file(
    package: OnnxPackage,
    runner: Runner,
    path: Path,
    user: UserVectors,
    policy: Policy,
    variants: Variants | None = None,
) -> ParityReport:
    if user.expected:
        vectors = VectorSet(user.sizes, user.inputs, user.expected, (), ())
        reference = f"expected outputs in {path}"
        return compare(
            package, runner, [vectors], reference=reference, outputs_only=True, policy=policy
        )
    vectors = _run_function_bodies(package, user)
    reference = f"function bodies with optimisations off, on {path} (not the original model)"
    of_engine = isinstance(runner, EngineRunner)  # which gives no gates
    return compare(
        package,
        runner,
        [vectors],
        reference=reference,
        outputs_only=of_engine,
        variants=variants,
        policy=policy,
    )


def _run_function_bodies(package: OnnxPackage, user: UserVectors) -> VectorSet:
    gate_names = package.gate_names
    runner = open_session(package, kernels="off", optimize=False, extra_outputs=gate_names)
    results = runner.run(user.inputs)
    gates = tuple(results[name] for name in gate_names)
    outputs = {spec.name: results[spec.name] for spec in package.manifest.outputs}
    return VectorSet(user.sizes, user.inputs, outputs, gates, tuple(map(_no_near_ties, gates)))


def _no_near_ties(gates: Array) -> Array:
    """Return margins that excuse nothing: the scores behind the choice are not known here."""
    return np.full(gates.shape[:-1], np.inf, np.float32)
