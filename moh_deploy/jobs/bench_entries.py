"""Who takes part in a benchmark: packages, and the baselines that words and paths name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from moh_deploy.backends.runner import Kernels
from moh_deploy.backends.trt.engine_reading import is_engine_dir
from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.jobs.choices import write_choices
from moh_deploy.package import OnnxPackage, choices_for, with_choices
from moh_deploy.suggest import did_you_mean
from moh_deploy.tuning.contestants import EagerContestant, Entry, OrtContestant
from moh_deploy.tuning.fixed_routing import FixedRouting, why_routing_stays
from moh_deploy.tuning.inputs import InputSet
from moh_deploy.tuning.original import Original

DENSE, FUNCTIONS, FIXED = "dense", "functions", "fixed-routing"
EAGER, PLAIN = "eager", "plain-onnx"
_OF_THE_ORIGINAL = (EAGER, PLAIN)


@dataclass(frozen=True)
class LineUp:
    """Who takes part.

    Attributes:
        entries: Everybody, packages first.
        packages: What is measured, by name; the first one says which inputs there are.
        why_not_fixed: Why the routing of the first one cannot be fixed, although that was asked
            for; else None.
    """

    entries: tuple[Entry, ...]
    packages: Mapping[str, OnnxPackage]
    why_not_fixed: str | None

    @property
    def first(self) -> OnnxPackage:
        """The package that baselines are made from."""
        return next(iter(self.packages.values()))


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

    def line_up(self, roots: Sequence[Path | str], baselines: Sequence[Path | str]) -> LineUp:
        """Read packages and find what baselines are.

        Raises:
            ConfigError: A baseline is none, or a name stands for two.
            PackageError: A directory is no package, or has changed.
            BackendError: One is an engine.
        """
        if not roots:
            raise ConfigError("there is no package to measure, expected at least one directory.")
        packages = [_open(root) for root in roots]
        named = {str(one.root): one for one in packages}
        entries = [self._of_package(str(one.root), one, is_baseline=False) for one in packages]
        self._check_original(baselines)
        why_not = why_routing_stays(packages[0]) if FIXED in baselines else None
        wanted = [one for one in baselines if one != FIXED or why_not is None]
        entries += [self._baseline(packages[0], one) for one in wanted]
        _check_names([one.name for one in entries])
        return LineUp(tuple(entries), named, why_not)

    def _baseline(self, package: OnnxPackage, named: Path | str) -> Entry:
        makers: dict[Path | str, Callable[[OnnxPackage], Entry]] = {
            DENSE: self._dense,
            FUNCTIONS: lambda one: self._of_package(FUNCTIONS, one, kernels="off"),
            FIXED: self._fixed,
            EAGER: self._eager,
            PLAIN: self._plain,
        }
        if named in makers:
            return makers[named](package)
        path = Path(named)
        if path.is_file():
            return self._of_file(str(path), path)
        if not path.is_dir() and (hint := did_you_mean(str(named), list(map(str, makers)))):
            raise ConfigError(f"baseline '{named}' is no directory and no file.", hint=hint)
        return self._of_package(str(path), _open(path))

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

    def _fixed(self, package: OnnxPackage) -> Entry:
        def load(sets: Sequence[InputSet], stack: ExitStack) -> FixedRouting:
            return FixedRouting.load(package, sets, kernels=self.kernels, threads=self.threads)

        return Entry(FIXED, True, load)

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

    def _check_original(self, baselines: Sequence[Path | str]) -> None:
        wanting = [one for one in baselines if one in _OF_THE_ORIGINAL]
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


def _open(root: Path | str) -> OnnxPackage:
    if is_engine_dir(root):
        raise BackendError(
            f"{root} is an engine directory: engines run on a GPU, whose time bench cannot measure"
            " yet; it takes packages.",
            hint="trtexec --loadEngine times an engine.",
        )
    return OnnxPackage.open(root)


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"there are {names.count(name)} contestants '{name}', expected one.")
