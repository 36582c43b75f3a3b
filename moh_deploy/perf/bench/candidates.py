"""The candidates of a benchmark: packages, and the baselines that words and paths name."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from moh_deploy.errors import ConfigError
from moh_deploy.graph.choose_layers import write_choices
from moh_deploy.package import OnnxPackage, Runtime, choices_for, with_choices
from moh_deploy.perf.bench import candidate
from moh_deploy.runtime.base import Deployed, ModelKind, Variant
from moh_deploy.runtime.kernel_use import Kernels
from moh_deploy.runtime.models import runtime_for
from moh_deploy.runtime.open_runner import find_deployed, find_model, onnx_file, opened_package
from moh_deploy.runtime.original import Original, OriginalModel, PlainExport
from moh_deploy.system.suggest import did_you_mean
from moh_deploy.validate.reference.reference import Subject, read_subject

DENSE, FUNCTIONS = "dense", "functions"
EAGER, PLAIN = "eager", "plain-onnx"
PLAIN_ENGINE = "plain-engine"


@dataclass(frozen=True)
class BenchSetting:
    """The settings that all candidates are run with."""

    kernels: Kernels  # what runs MoH nodes
    threads: int | None  # threads within an operator
    original: Original | None  # what baselines of the original are, or None
    scratch: Path  # where models may be written that are made for this
    # What packages and ONNX models run in; None for what each package was tuned for.
    runtime: Runtime | None = None

    @property
    def plain_engine_dir(self) -> Path:
        """Where to build the baseline `plain-engine` before anything is loaded."""
        return self.scratch / PLAIN_ENGINE

    def variant(self, preferred: Runtime | None = None) -> Variant:
        """Return the way in which a candidate is opened that asks for nothing else.

        Args:
            preferred: What it was tuned for.

        Raises:
            BackendError: That is not installed, and no other runtime is asked for.
        """
        runtime = runtime_for(self.runtime, preferred)
        return Variant(runtime=runtime, kernels=self.kernels, threads=self.threads)


@dataclass(frozen=True)
class Candidates:
    """All candidates of one benchmark, and what they are compared with."""

    entries: tuple[candidate.Candidate, ...]  # the candidates, packages first
    # The package that baselines are made from, and that says which inputs there are; of an engine
    # the one that it was built from.
    first: OnnxPackage
    # What is measured, by name, to be compared with what it should compute.
    subjects: Mapping[str, Subject]
    # Which routers of the first one are to be gone, of each baseline that says so; those that
    # cannot go are no entries.
    fixed_routers: tuple[candidate.FixedRouters, ...]

    @property
    def packages(self) -> dict[str, OnnxPackage]:
        """The packages that are measured, by name: no engines."""
        return {
            name: subject.package for name, subject in self.subjects.items() if subject.has_gates
        }

    def is_of_another_checkpoint(self, original: Original) -> bool:
        """Tell whether an original is known not to be what the first package was made from."""
        made_of = self.first.manifest.checkpoint_sha256
        return None not in (made_of, original.sha256) and made_of != original.sha256


def find_candidates(
    setting: BenchSetting,
    roots: Sequence[Path | str],
    baselines: Sequence[Path | str],
    package: Path | str | None = None,
) -> Candidates:
    """Read packages and find what baselines are.

    Args:
        setting: How they are run.
        roots: Packages and engines.
        baselines: Words and paths.
        package: What the first one was built from, if that is an engine.

    Raises:
        ConfigError: A baseline is unknown, or a name stands for two; or `package` is not what the
            first one was built from.
        PackageError: A directory is neither package nor engine, or has changed.
    """
    if not roots:
        raise ConfigError("there is no package to measure, expected at least one directory.")
    built_from = None if package is None else Path(package)
    subject = read_subject(Path(roots[0]), built_from, setting.kernels, setting.runtime)
    # An engine is built for some sizes only; recorded inputs of other sizes cannot run on it.
    vectors = subject.package.vectors
    fitting = tuple(run for run in vectors if subject.model.fits(run.sizes))
    first = replace(subject.package, vectors=fitting or vectors)
    # Everybody runs on inputs of the first package, and baselines by a word are made from it.
    others = {str(root): _other_subject(Path(root), first, setting) for root in roots[1:]}
    subjects = {str(roots[0]): subject, **others}
    # Refused before anything is exported or written, which may take minutes.
    _check_baselines(baselines, subject, setting.original)
    fixed = {
        baseline: found
        for baseline in baselines
        if (found := candidate.routers_to_fix(first, str(baseline)))
    }
    # Routing that cannot be fixed is reported with its reason, but there is nothing to run.
    possible = [
        baseline for baseline in baselines if baseline not in fixed or not fixed[baseline].why_not
    ]
    own = setting.variant(subject.model.preferred_runtime)
    entries = [
        *(
            candidate.Candidate(name, False, subject.model, setting.variant(subject.runtime))
            for name, subject in subjects.items()
        ),
        *(
            _baseline(setting, own, subject.model, first, path, fixed.get(path))
            for path in possible
        ),
    ]
    names = [*map(str, roots), *(entry.name for entry in entries if entry.is_baseline)]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"there are {names.count(name)} candidates '{name}', expected one.")
    return Candidates(tuple(entries), first, subjects, tuple(fixed.values()))


def _other_subject(root: Path, first: OnnxPackage, setting: BenchSetting) -> Subject:
    """Read a package or engine besides the first one.

    Of an engine no more is known than what the first package says: it takes the same inputs.
    """
    model = find_deployed(root)
    if not model.is_compiled:
        runtime = runtime_for(setting.runtime, model.preferred_runtime)
        return Subject(model, model.made_from(None), setting.kernels, runtime)
    # Its own precision, though: tolerances depend on it.
    manifest = replace(first.manifest, precision=model.manifest.precision)
    return Subject(model, replace(first, manifest=manifest), setting.kernels)


def _baseline(
    setting: BenchSetting,
    own: Variant,
    first: Deployed,
    package: OnnxPackage,
    named: Path | str,
    fixed: candidate.FixedRouters | None,
) -> candidate.Candidate:
    """Return what a baseline is.

    Args:
        own: The way in which the first one is opened, as what is made from it is.
        first: The first one.
        package: That it is, or was made from.
    """
    if fixed is not None:
        whole = opened_package(package)
        return candidate.FixedRouting(fixed.name, True, whole, own, package, fixed.layers)
    # Words come before paths, even where a directory is called `dense`.
    off = replace(own, kernels="off")
    if named == DENSE:
        layers = package.manifest.layers
        if not any(map(choices_for, layers)):
            raise ConfigError(
                f"{package.root} has no layer that could be dense: the baseline 'dense' would be"
                " the package itself.",
                hint="`moh-deploy inspect` says why layers were not replaced.",
            )
        # Written as a package of its own, as which domain a node is in is part of the model file.
        chosen = with_choices(layers, {"all": "dense"})
        written = write_choices(package, chosen, setting.scratch / DENSE)
        return candidate.Candidate(DENSE, True, opened_package(written), own)
    if named == FUNCTIONS:
        return candidate.Candidate(FUNCTIONS, True, opened_package(package), off)
    if named == PLAIN_ENGINE:
        # It takes minutes to build, so it is built once all options fit.
        plain = cast(ModelKind, type(first))(setting.plain_engine_dir)
        return candidate.Candidate(PLAIN_ENGINE, True, plain, own)
    original = setting.original
    if named == EAGER and original is not None:
        return candidate.Candidate(EAGER, True, OriginalModel.of(original, package.manifest), own)
    if named == PLAIN and original is not None:
        # The model as `torch.onnx.export` writes it, in standard operators only.
        export = PlainExport(original, package, setting.scratch / PLAIN / "model.onnx")
        return candidate.Candidate(PLAIN, True, export, off)
    path = Path(named)
    if not os.path.exists(path) and (
        hint := did_you_mean(
            str(named), [DENSE, FUNCTIONS, EAGER, PLAIN, PLAIN_ENGINE, candidate.FIXED]
        )
    ):
        raise ConfigError(f"baseline '{named}' is no directory and no file.", hint=hint)
    # Models of others are called anything: what is no package and no engine is taken for ONNX.
    model = find_model(path) or onnx_file(path)
    if isinstance(model, Deployed):
        _ = model.manifest  # It is read before anything is measured.
        return candidate.Candidate(
            str(named), True, model, setting.variant(model.preferred_runtime)
        )
    # A foreign model: our kernels are no part of it.
    return candidate.Candidate(str(named), True, model, replace(setting.variant(), kernels="off"))


def _check_baselines(
    baselines: Sequence[Path | str], first: Subject, original: Original | None
) -> None:
    of_package = [baseline for baseline in baselines if is_the_package(str(baseline))]
    if of_package and first.model.is_compiled:
        raise ConfigError(
            f"the baseline '{of_package[0]}' is a package run in another way, but the first"
            f" one, {first.model.root}, is an engine.",
            hint=f"Compare it with the same without kernels: --baseline {PLAIN_ENGINE}.",
        )
    if PLAIN_ENGINE in baselines and not first.model.is_compiled:
        raise ConfigError(
            f"the baseline '{PLAIN_ENGINE}' is an engine without kernels, but the first one,"
            f" {first.model.root}, is a package.",
            hint=f"What kernels gain in ONNX Runtime is told by --baseline {FUNCTIONS}.",
        )
    wanting = [baseline for baseline in baselines if is_the_original(str(baseline))]
    if wanting and original is None:
        raise ConfigError(
            f"the baseline '{wanting[0]}' is the original model, which is not given.",
            hint="Name its checkpoint: --checkpoint FILE, and what export was given to load it"
            " (--config, --factory, --code-dir).",
        )
    if original is not None and not wanting:
        raise ConfigError(
            "the original model is given, but no baseline is made from it.",
            hint="Ask for one: --baseline eager, --baseline plain-onnx.",
        )


def is_the_package(baseline: str) -> bool:
    """Tell whether a baseline is the first package, run in another way."""
    return baseline in (DENSE, FUNCTIONS) or baseline.partition(":")[0] == candidate.FIXED


def is_the_engine(baseline: str) -> bool:
    """Tell whether a baseline is the first engine, built in another way."""
    return baseline == PLAIN_ENGINE


def is_the_original(baseline: str) -> bool:
    """Tell whether a baseline is the original model."""
    return baseline in (EAGER, PLAIN)
