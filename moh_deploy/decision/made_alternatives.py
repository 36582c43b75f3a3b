"""Find the alternatives of a plan, and derive packages from others in a scratch directory."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from moh_deploy.decision.alternative import (
    Alternative,
    FixedRoutingModel,
    ServerModel,
    named_errors,
    why_not_fed,
)
from moh_deploy.decision.plan import AlternativeSection, PlanFile
from moh_deploy.derive.forms import with_top_k
from moh_deploy.derive.precision import write_precision
from moh_deploy.derive.prune import write_pruned
from moh_deploy.errors import ConfigError
from moh_deploy.graph.choose_layers import write_choices
from moh_deploy.ops.routers import form_named
from moh_deploy.package import OnnxPackage, choices_for, with_choices
from moh_deploy.runtime.base import Deployed, Model, Variant
from moh_deploy.runtime.models import PackageDir, runtime_for, runtime_name_of
from moh_deploy.runtime.open_runner import find_model, opened_package
from moh_deploy.runtime.original import Original, OriginalModel
from moh_deploy.serving.drill.targets import host_and_port
from moh_deploy.system.progress import Progress

ELSEWHERE = "it runs in the server's process"

LoadOriginal = Callable[..., Original]
"""Loads a checkpoint by the settings of `ModelOptions`; `moh_deploy.load_original` does."""


@dataclass(frozen=True)
class FoundAlternatives:
    """The alternatives of a plan that are there, and those that are still to be made."""

    file: PlanFile  # the plan
    base: OnnxPackage  # the first package, whose names of inputs and outputs are used
    models: Mapping[str, Model]  # name of each alternative with a path to what it names
    load_original: LoadOriginal | None  # what loads a checkpoint; None if nothing does

    def given(self, progress: Progress) -> list[Alternative]:
        """Return the alternatives that nothing has to be made for, in the plan's order.

        Raises:
            MoHDeployError: A checkpoint cannot be loaded; the message names its alternative.
        """
        alternatives = []
        for name, section in self.file.plan.arms.items():
            if section.made is None:
                with progress.step(f"finding alternative '{name}'"), named_errors(name):
                    alternatives.append(self._given(name, section))
        return alternatives

    def made(
        self, given: Sequence[Alternative], scratch: Path, progress: Progress
    ) -> list[Alternative]:
        """Return all alternatives, in the plan's order; making some takes minutes.

        Args:
            given: Those that are there already.

        Raises:
            MoHDeployError: One cannot be made; the message names it.
        """
        alternatives = {alternative.name: alternative for alternative in given}
        for index, (name, section) in enumerate(self.file.plan.arms.items()):
            if section.made is not None:
                with progress.step(f"making alternative '{name}'"), named_errors(name):
                    alternatives[name] = self._made(name, section, scratch / str(index), progress)
        return [alternatives[name] for name in self.file.plan.arms]

    def _given(self, name: str, section: AlternativeSection) -> Alternative:
        chooses = False if section.dense else None
        if section.path is not None:
            model = self.models[name]
            # What an engine, or a model of another format, does with heads is not known here.
            package = model.package if isinstance(model, PackageDir) else None
            if package is not None and not section.dense:
                chooses = _chooses(package)
            variant = self._variant(section, model)
            return Alternative(name, model.name, model, variant, package, section.dense, chooses)
        variant, manifest = Variant(threads=self.file.plan.threads), self.base.manifest
        if section.url is not None:
            assert section.model is not None, "the plan was checked"
            served = ServerModel(section.url, section.model, manifest)
            alternative = Alternative(
                name, served.name, served, variant, None, section.dense, chooses
            )
            return replace(alternative, elsewhere=ELSEWHERE)
        checkpoint, placed = section.checkpoint, self.file.placed
        assert checkpoint is not None, "the plan was checked"
        if self.load_original is None:
            raise ConfigError(
                f"{checkpoint.file} is a checkpoint, and nothing was given that loads it.",
                hint="Hand over load_original=moh_deploy.load_original.",
            )
        loaded = self.load_original(
            placed(checkpoint.file),
            config=None if checkpoint.config is None else placed(checkpoint.config),
            factory=checkpoint.factory,
            code_dirs=list(map(placed, checkpoint.code_dirs)),
            state_key=checkpoint.state_key,
            dtype=checkpoint.dtype,
        )
        original = OriginalModel.of(loaded, manifest)
        return Alternative(name, original.name, original, variant, None, section.dense, chooses)

    def _made(
        self, name: str, section: AlternativeSection, output: Path, progress: Progress
    ) -> Alternative:
        made, plan = section.made, self.file.plan
        # The reference if it is a package, or else the first alternative that is.
        names = sorted(self.models, key=lambda name: name != plan.reference)
        packages = (name for name in names if isinstance(self.models[name], PackageDir))
        of = section.of or next(packages, plan.base)
        assert made is not None, "the plan was checked"
        assert of is not None, "the plan was checked"
        model = self.models[of]
        if not isinstance(model, PackageDir):
            raise ConfigError(f"it is made of '{of}', which is {model.name}, and no package.")
        package, variant = model.package, self._variant(section, model)
        kind = f"made of '{of}'"
        if made.fixed_routing:
            why = why_not_fed(package)
            if why is not None:
                raise ConfigError(f"its routing cannot be fed: {why}.")
            fed = FixedRoutingModel(package)
            return Alternative(name, f"{kind}: routing fed", fed, variant, is_bound=True)
        # Every other one is a package of its own, which takes a directory.
        output.mkdir()
        target, chooses = output / "package", _chooses(package)
        if made.all_heads_open:
            kind, chooses = f"{kind}: all heads open, in standard operators", False
            written = with_top_k(package.root, output / "open", top_k=None, progress=progress)
            layers = written.manifest.layers
            if any(map(choices_for, layers)):  # Nothing is paid for skipping any.
                chosen = with_choices(layers, {"all": "dense"})
                written = write_choices(written, chosen, output / "dense")
        elif made.precision is not None:
            kind = f"{kind}: {made.precision}"
            write_precision(package, made.precision, target, progress)
            written = OnnxPackage.open(target)
        elif made.prune is not None:
            keep, by = made.prune.keep, made.prune.by
            kind, chooses = f"{kind}: the same heads for every token, {keep} by {by}", False
            inputs = [self.file.placed(path) for path in made.prune.inputs]
            write_pruned(package, target, progress, keep=keep, by=by, inputs=inputs)
            written = OnnxPackage.open(target)
        elif made.top_k == "all":
            kind, chooses = f"{kind}: all heads open, on its kernels", False
            written = with_top_k(package.root, target, top_k=None, progress=progress)
        else:
            kind = f"{kind}: {made.top_k} routed heads for each token"
            written = with_top_k(package.root, target, top_k=made.top_k, progress=progress)
        dense, chooses = section.dense or bool(made.all_heads_open), chooses and not section.dense
        return Alternative(name, kind, opened_package(written), variant, written, dense, chooses)

    def _variant(self, section: AlternativeSection, model: Model) -> Variant:
        preferred = model.preferred_runtime if isinstance(model, Deployed) else None
        runtime = runtime_for(section.runtime, preferred)
        return Variant(runtime=runtime, kernels=section.kernels, threads=self.file.plan.threads)


def find_alternatives(file: PlanFile, load_original: LoadOriginal | None) -> FoundAlternatives:
    """Read what the paths of a plan name, and check what can be checked without loading it.

    Raises:
        ConfigError: A path names nothing that runs, a URL is malformed, or no alternative is a
            package.
        PackageError: A package cannot be read, or has changed since it was written.
        BackendError: A runtime that is asked for is not installed.
    """
    plan, models = file.plan, dict[str, Model]()
    for name, section in plan.arms.items():
        with named_errors(name):
            if section.url is not None:
                host_and_port(section.url)
            checkpoint = section.checkpoint
            if checkpoint is not None and not os.path.exists(file.placed(checkpoint.file)):
                raise ConfigError(f"{file.placed(checkpoint.file)} does not exist.")
            if section.path is not None:
                models[name] = _found(file.placed(section.path))
            if section.runtime is not None:
                runtime_name_of(section.runtime)
    # The reference first: it is what would be served otherwise.
    named = sorted(models, key=lambda name: name != plan.reference)
    packages = [found for name in named if isinstance(found := models[name], PackageDir)]
    if not packages:
        raise ConfigError(
            f"{file.source}: no alternative is a package, expected one that says what the inputs"
            " are.",
            hint="Name one: arms.NAME.path: DIR.",
        )
    return FoundAlternatives(file, packages[0].package, models, load_original)


def _found(path: Path) -> Model:
    model = find_model(path)
    if model is None:
        raise ConfigError(
            f"{path} is no package, engine or ONNX model.",
            hint="A checkpoint is named by `checkpoint: {file: ...}`.",
        )
    if isinstance(model, Deployed):
        _ = model.manifest  # It is read before anything is made or measured.
    elif not os.path.isfile(path):
        raise ConfigError(f"{path} does not exist.")
    return model


def _chooses(package: OnnxPackage) -> bool:
    return any(not form_named(layer.router).is_constant for layer in package.manifest.layers)
