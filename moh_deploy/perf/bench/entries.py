"""Who takes part in a benchmark: packages, and the baselines that words and paths name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from moh_deploy.errors import ConfigError
from moh_deploy.graph.write_choices import write_choices
from moh_deploy.package import OnnxPackage, choices_for, with_choices
from moh_deploy.perf.bench.contestants import EagerContestant, Entry, OrtContestant
from moh_deploy.perf.bench.engine_contestant import EngineContestant
from moh_deploy.perf.bench.fixed_routing import FIXED, FixedRouting, Fixing, fixing
from moh_deploy.perf.bench.original import Original
from moh_deploy.runtime.runner import Kernels
from moh_deploy.runtime.tensorrt.engine_reading import is_engine_dir, read_engine_dir
from moh_deploy.runtime.tensorrt.engine_runs import open_engine
from moh_deploy.system.suggest import did_you_mean
from moh_deploy.validate.input_sets import InputSet
from moh_deploy.validate.subject import Subject, read_subject

DENSE, FUNCTIONS = "dense", "functions"
EAGER, PLAIN = "eager", "plain-onnx"


@dataclass(frozen=True)
class LineUp:
    """Who takes part.

    Attributes:
        entries: Everybody, packages first.
        first: The package that baselines are made from, and that says which inputs there are; of
            an engine the one that it was built from.
        subjects: What is measured, by name, to be compared with what it should compute.
        fixings: Which routers of the first one are to be gone, of each baseline that says so;
            those that cannot go are no entries.
    """

    entries: tuple[Entry, ...]
    first: OnnxPackage
    subjects: Mapping[str, Subject]
    fixings: tuple[Fixing, ...]

    @property
    def packages(self) -> dict[str, OnnxPackage]:
        """The packages that are measured, by name: no engines."""
        return {name: one.package for name, one in self.subjects.items() if one.has_gates}

    def is_of_another_checkpoint(self, original: Original) -> bool:
        """Tell whether an original is known not to be what the first package was made from."""
        made_of = self.first.manifest.checkpoint_sha256
        return None not in (made_of, original.sha256) and made_of != original.sha256


@dataclass(frozen=True)
class Organizer:
    """Makes entries.

    Attributes:
        kernels: What runs MoH nodes.
        threads: Threads within an operator.
        original: What baselines of the original are; None if there is none.
        scratch: Where models may be written that are made for this.
    """

    kernels: Kernels
    threads: int | None
    original: Original | None
    scratch: Path

    def line_up(
        self,
        roots: Sequence[Path | str],
        baselines: Sequence[Path | str],
        package: Path | str | None = None,
    ) -> LineUp:
        """Read packages and find what baselines are.

        Args:
            package: What the first one was built from, if that is an engine.

        Raises:
            ConfigError: A baseline is none, or a name stands for two; or `package` is not what the
                first one was built from.
            PackageError: A directory is neither package nor engine, or has changed.
        """
        if not roots:
            raise ConfigError("there is no package to measure, expected at least one directory.")
        subject = read_subject(
            Path(roots[0]), None if package is None else Path(package), self.kernels
        )
        first = _inputs_package(subject)
        others = {str(one): self._other_subject(Path(one), first) for one in roots[1:]}
        entries = [self._of_directory(Path(one), is_baseline=False) for one in roots]
        self._check_baselines(baselines, Path(roots[0]))
        fixings = {one: found for one in baselines if (found := fixing(first, str(one)))}
        possible = [one for one in baselines if one not in fixings or not fixings[one].why_not]
        entries += [self._baseline(first, one, fixings.get(one)) for one in possible]
        _check_names([one.name for one in entries])
        subjects = {str(roots[0]): subject, **others}
        return LineUp(tuple(entries), first, subjects, tuple(fixings.values()))

    def _other_subject(self, root: Path, first: OnnxPackage) -> Subject:
        """Read one of the others. Of an engine no more is known than what the first package says:
        it takes the same inputs."""
        if not is_engine_dir(root):
            return Subject(root, OnnxPackage.open(root), self.kernels)
        engine = read_engine_dir(root)
        manifest = replace(first.manifest, precision=engine.precision)
        return Subject(root, replace(first, manifest=manifest), self.kernels, engine)

    def _baseline(self, package: OnnxPackage, named: Path | str, fixing: Fixing | None) -> Entry:
        if fixing is not None:
            return self._fixed(package, fixing)
        makers: dict[Path | str, Callable[[OnnxPackage], Entry]] = {
            DENSE: self._dense,
            FUNCTIONS: lambda one: self._of_package(FUNCTIONS, one, kernels="off"),
            EAGER: self._eager,
            PLAIN: self._plain,
        }
        if named in makers:
            return makers[named](package)
        path = Path(named)
        if path.is_file():
            return self._of_file(str(path), path)
        if not path.is_dir() and (hint := did_you_mean(str(named), [*map(str, makers), FIXED])):
            raise ConfigError(f"baseline '{named}' is no directory and no file.", hint=hint)
        return self._of_directory(path)

    def _of_directory(self, root: Path, *, is_baseline: bool = True) -> Entry:
        if is_engine_dir(root):
            return self._of_engine(root, is_baseline=is_baseline)
        return self._of_package(str(root), OnnxPackage.open(root), is_baseline=is_baseline)

    def _of_engine(self, root: Path, *, is_baseline: bool) -> Entry:
        def load(sets: Sequence[InputSet], stack: ExitStack) -> EngineContestant:
            runner = open_engine(root, self.kernels)
            stack.enter_context(runner.engine)
            return EngineContestant(runner.engine, runner.kernels)

        return Entry(str(root), is_baseline, load)

    def _of_package(
        self,
        name: str,
        package: OnnxPackage,
        *,
        kernels: Kernels | None = None,
        is_baseline: bool = True,
    ) -> Entry:
        def load(sets: Sequence[InputSet], stack: ExitStack) -> OrtContestant:
            return OrtContestant.load(name, package, kernels or self.kernels, self.threads)

        return Entry(name, is_baseline, load)

    def _of_file(self, name: str, path: Path) -> Entry:
        """A model of somebody else's: our kernels are no part of it."""
        return Entry(
            name, True, lambda sets, stack: OrtContestant.load(name, path, "off", self.threads)
        )

    def _dense(self, package: OnnxPackage) -> Entry:
        layers = package.manifest.layers
        if not any(map(choices_for, layers)):
            raise ConfigError(
                f"{package.root} has no layer that could be dense: the baseline 'dense' would be"
                " the package itself.",
                hint="`moh-deploy inspect` says why layers were not replaced.",
            )
        chosen = with_choices(layers, {"all": "dense"})
        return self._of_package(DENSE, write_choices(package, chosen, self.scratch / DENSE))

    def _fixed(self, package: OnnxPackage, fixing: Fixing) -> Entry:
        def load(sets: Sequence[InputSet], stack: ExitStack) -> FixedRouting:
            return FixedRouting.load(
                package, fixing.layers, sets, kernels=self.kernels, threads=self.threads
            )

        return Entry(fixing.name, True, load)

    def _eager(self, package: OnnxPackage) -> Entry:
        def load(sets: Sequence[InputSet], stack: ExitStack) -> EagerContestant:
            assert self.original is not None
            stack.enter_context(self.original.on_threads(self.threads))
            return EagerContestant(self.original, self.threads)

        return Entry(EAGER, True, load)

    def _plain(self, package: OnnxPackage) -> Entry:
        path = self.scratch / PLAIN / "model.onnx"

        def load(sets: Sequence[InputSet], stack: ExitStack) -> OrtContestant:
            assert self.original is not None
            path.parent.mkdir()
            self.original.write_onnx(path, package)
            return OrtContestant.load(PLAIN, path, "off", self.threads)

        return Entry(PLAIN, True, load)

    def _check_baselines(self, baselines: Sequence[Path | str], first: Path) -> None:
        of_package = [one for one in baselines if is_the_package(str(one))]
        if of_package and is_engine_dir(first):
            raise ConfigError(
                f"the baseline '{of_package[0]}' is a package run in another way, but the first"
                f" one, {first}, is an engine.",
                hint="Build another engine to compare with, or name a package.",
            )
        wanting = [one for one in baselines if is_the_original(str(one))]
        if wanting and self.original is None:
            raise ConfigError(
                f"the baseline '{wanting[0]}' is the original model, which is not given.",
                hint="Name its checkpoint: --checkpoint FILE, and what export was given to load it"
                " (--config, --factory, --code-dir).",
            )
        if self.original is not None and not wanting:
            raise ConfigError(
                "the original model is given, but no baseline is made from it.",
                hint="Ask for one: --baseline eager, --baseline plain-onnx.",
            )


def is_the_package(baseline: str) -> bool:
    """Tell whether a baseline is the first package, run in another way."""
    return baseline in (DENSE, FUNCTIONS) or baseline.partition(":")[0] == FIXED


def is_the_original(baseline: str) -> bool:
    """Tell whether a baseline is the original model."""
    return baseline in (EAGER, PLAIN)


def _inputs_package(subject: Subject) -> OnnxPackage:
    """Return the package that says which inputs there are."""
    if subject.engine is None:
        return subject.package
    fitting = tuple(one for one in subject.package.vectors if subject.engine.fits(one.sizes))
    return replace(subject.package, vectors=fitting or subject.package.vectors)


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"there are {names.count(name)} contestants '{name}', expected one.")
