"""Run a package on edge cases, and search inputs for tokens whose routing is least clear."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from moh_deploy.errors import ConfigError
from moh_deploy.package import OnnxPackage, Runtime, check_replaceable
from moh_deploy.package.writer import replace_corpus
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.kernel_use import Kernels
from moh_deploy.runtime.models import runtime_for
from moh_deploy.runtime.open_runner import find_deployed
from moh_deploy.system.progress import Progress, SilentProgress
from moh_deploy.validate.compare.policy import BUILT_IN_POLICY, read_policy
from moh_deploy.validate.edge_cases.mining import cut_into_samples, grown, mine, recorded_by
from moh_deploy.validate.edge_cases.report import ProbeReport
from moh_deploy.validate.edge_cases.source import Sides, Source, body_source, input_states
from moh_deploy.validate.edge_cases.suite import Suite
from moh_deploy.validate.reference.reference import Reference
from moh_deploy.validate.reference.samples import named_mask, read_samples


def probe(
    package_dir: Path | str,
    *,
    inputs: Sequence[Path | str] = (),
    update_corpus: bool = False,
    valid_tokens: str | None = None,
    longest: Mapping[str, int] | None = None,
    runtime: Runtime | None = None,
    kernels: Kernels = "auto",
    policy: Path | str | None = None,
    original: Reference | None = None,
    progress: Progress | None = None,
) -> ProbeReport:
    """Run a package on edge cases, and compare it with its own function bodies.

    Routing states are put where routers read their logits, and where these are computed; there,
    gates are compared with the float64 reference of MoHRouter, too, up to where attention reads
    them. Input states are inputs of the model, and samples of its recorded run at other sizes.

    Args:
        package_dir: The package.
        inputs: npz files, or directories of them, to be searched for tokens whose choice of heads
            is least clear.
        update_corpus: Keep what was found in the regression corpus of the package, which is
            replaced in one step.
        valid_tokens: The input that is 0 for padding; `not NAME`: 1 for padding. None takes
            the one that the package names, if it names one; `all` takes none.
        longest: Dynamic dimension to the size that counts as its longest.
        runtime: `onnxruntime`, `openvino` or `onnxruntime-cuda`: what runs a package; None for
            what it was tuned for, or else ONNX Runtime. An engine has its own.
        kernels: What runs MoH nodes, see `Variant`.
        original: Records what is found in the inputs, such as `moh_deploy.load_original` makes;
            without, the function bodies do.
        policy: YAML file of tolerances over the built-in table, see `read_policy`.
        progress: What to report steps to.

    Returns:
        How each case ended. Look at `passed`, or call `raise_if_failed`.

    Raises:
        PackageError: Not a package, or it has changed since it was written, or cannot be replaced.
        ConfigError: It is an engine, or an option or a file of inputs does not fit.
        BackendError: The runtime cannot load the model.
    """
    progress, root = progress or SilentProgress(), Path(package_dir)
    if find_deployed(root).is_compiled:
        raise ConfigError(
            f"{root} is an engine: it has no place to put logits, and no function bodies to compare"
            " with.",
            hint="Probe the package that it was built from. `moh-deploy verify` compares engines.",
        )
    if update_corpus and not inputs:
        raise ConfigError(
            "update_corpus needs inputs to search.", hint="Give some: --inputs FILE.npz."
        )
    if original is not None and not inputs:
        raise ConfigError(
            f"{original.name} is to record what is found in inputs, but no inputs are given.",
            hint="Give some: --inputs FILE.npz. `moh-deploy verify --against` compares with it.",
        )
    rules = BUILT_IN_POLICY if policy is None else read_policy(Path(policy))
    with progress.step("reading the package"):
        package = OnnxPackage.open(root)
        runs_in = runtime_for(runtime, package.manifest.runtime)
        if update_corpus:
            hint = "Without --update-corpus nothing is written."
            check_replaceable(root, "the corpus", hint=hint)
        files = read_samples([Path(path) for path in inputs], package.manifest)
        # Everything is read and checked before the first session is opened.
        mask = named_mask(package.manifest, valid_tokens)
        states = tuple(input_states(package, longest or {}, mask))
    # One side as the user runs it, the other on function bodies: they differ by kernels and
    # optimisations alone.
    subject = Source(package, Variant(runtime=runs_in, kernels=kernels))
    sides = Sides(package, subject, body_source(package), rules, mask)
    mining = None
    if files:
        with progress.step("searching the inputs"):
            samples = cut_into_samples(package.manifest, files)
            mining = mine(sides.recorder, samples, valid_tokens=mask)
    # The choice of samples is the package's; what is expected of them, the original's.
    if mining is not None and original is not None:
        with progress.step("running the original model"):
            mining = recorded_by(original, package, mining)
    results = Suite(sides, states).run(progress, mining)
    if mining is not None and update_corpus:
        with progress.step("writing the package"):
            package = replace_corpus(package, grown(package.corpus, mining.samples))
    described = sides.runner.describe()
    return ProbeReport(
        results=tuple(results),
        mining=mining,
        corpus=package.corpus,
        corpus_written=update_corpus,
        layers=tuple(layer.path for layer in package.manifest.layers),
        layer_runs=described.layer_runs,
        kernels=described.kernels,
        policy=rules.source,
    )
