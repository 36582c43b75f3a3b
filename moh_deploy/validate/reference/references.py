"""Find what `--against` names: the package run otherwise, another package, an engine, a model."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeAlias, TypeVar

import numpy as np

from moh_deploy.errors import ConfigError
from moh_deploy.package import OnnxPackage, VectorSet
from moh_deploy.report.report import count
from moh_deploy.runtime.base import FUNCTION_BODIES, Deployed, Model, Variant
from moh_deploy.runtime.open_runner import find_model
from moh_deploy.runtime.original import InferenceRunner, PolygraphyModel
from moh_deploy.system.npz import Array
from moh_deploy.system.suggest import did_you_mean
from moh_deploy.validate.reference.layer_values import Recorder
from moh_deploy.validate.reference.reference import Answers, Reference, Subject, expected_outputs
from moh_deploy.validate.reference.samples import Sample, match_inputs, match_outputs

WORDS = ("recorded", "functions", "kernels")
_CHECKPOINTS = (".pt", ".pth", ".pt2", ".bin", ".ckpt", ".safetensors")

Against: TypeAlias = str | Path | Reference | InferenceRunner
"""What one is compared with."""


class File(Protocol):
    """A file of inputs, and the outputs that it holds."""

    @property
    def file(self) -> Path | None: ...

    @property
    def expected(self) -> Mapping[str, Array]: ...


AnyFile = TypeVar("AnyFile", bound=File)
Round: TypeAlias = tuple[Reference, Sequence[AnyFile]]
"""One comparison: with what, and on what."""


def rounds_of_files(
    files: Sequence[AnyFile], subject: Subject, against: Sequence[Against]
) -> list[Round[AnyFile]]:
    """Return the references of a user's files, each with the files that it has an answer for.

    Without `against`: the outputs that a file holds, function bodies for files without.
    """
    known = [file for file in files if file.expected]
    others = [file for file in files if not file.expected]
    if against:
        recorded = expected_outputs(file.file for file in known or files)
        return [(reference, files) for reference in references(against, subject, recorded)]
    found: list[Round[AnyFile]] = []
    if known:
        found.append((expected_outputs(file.file for file in known), known))
    return [*found, *([(function_bodies(subject.package), others)] if others else [])]


def references(
    against: Sequence[Against], subject: Subject, recorded: Reference
) -> tuple[Reference, ...]:
    """Turn words, paths, references and Polygraphy runners into references, in their order.

    Args:
        recorded: What the word `recorded` names.

    Raises:
        ConfigError: One names nothing, the same as another, or the package as it is itself.
        PackageError: A package, engine or model that is named cannot be read.
    """
    found: list[Reference] = []
    for name in against:
        if isinstance(name, (str, Path)):
            reference = _named(name, subject, recorded)
        elif isinstance(name, Reference):
            reference = name
        # By its method: Polygraphy need not be installed.
        elif hasattr(name, "infer"):
            reference = ModelReference(PolygraphyModel(name))
        else:
            raise ConfigError(
                f"against holds a {type(name).__name__}.",
                hint="Expected a word, a path, what moh_deploy.load_original returns, or a"
                " Polygraphy runner.",
            )
        # Two references of one name could not be told apart in the report or in a baseline file.
        if reference.name in [other.name for other in found]:
            raise ConfigError(f"against names {reference.name} twice.")
        found.append(reference)
    return tuple(found)


@dataclass(frozen=True)
class PackageReference:
    """A package that is run, and shows its gates."""

    name: str
    other: OnnxPackage
    variant: Variant

    def answers(self, package: OnnxPackage, samples: Sequence[Sample]) -> Answers:
        """Run the reference and return its answers.

        Raises:
            ConfigError: Its inputs or outputs cannot be matched with the package's.
            BackendError: The runtime failed.
        """
        ours, theirs = package.manifest, self.other.manifest
        recorder = Recorder.of(self.other, self.variant)
        feeds = _feeds(package, [spec.name for spec in theirs.inputs], samples, self.name)
        with _naming(self.name):
            made = [recorder.record(inputs) for inputs in feeds]
        pairs = zip(samples, made, strict=True)
        found = tuple(self._answer(package, sample.known, vectors) for sample, vectors in pairs)
        notes = list(_absent(self.name, package, found))
        # None where a package does not say what it was made from.
        if len({ours.checkpoint_sha256, theirs.checkpoint_sha256} - {None}) > 1:
            notes.append(f"{self.name} was made from another checkpoint.")
        has_gates = len(theirs.layers) == len(ours.layers)
        if not has_gates:
            layers = f"{count(len(theirs.layers), 'MoH layer')}, this one {len(ours.layers)}"
            notes.append(f"{self.name} has {layers}: routing is not compared.")
        notes += [f"{self.name}: {note}" for note in recorder.runner.describe().notes]
        return Answers(found, has_gates, tuple(notes))

    def _answer(self, package: OnnxPackage, known: VectorSet, found: VectorSet) -> VectorSet:
        # Scores that the model that ran does not show are those recorded.
        scores = tuple(
            known.scores[layer] if own is None and layer < len(known.scores) else own
            for layer, own in enumerate(found.scores)
        )
        return replace(
            found,
            sizes=known.sizes,
            inputs=known.inputs,
            outputs=_outputs(package, found.outputs, self.name),
            margins=_margins(known, found.margins),
            scores=scores,
        )


def function_bodies(package: OnnxPackage) -> PackageReference:
    """Return the package's own function bodies, run with all optimisations off."""
    name = "function bodies with optimisations off (not the original model)"
    return PackageReference(name, package, FUNCTION_BODIES)


def _named(named: str | Path, subject: Subject, recorded: Reference) -> Reference:
    if named == "recorded":
        return recorded
    if named == "functions":
        return function_bodies(subject.package)
    if named == "kernels":
        # A package that runs with kernels would be compared with itself; an engine would not.
        if subject.kernels != "off" and subject.has_gates:
            raise ConfigError(
                f"against is kernels, and {subject.model.root} itself runs with kernels where there"
                " are any.",
                hint="Give --kernels off to compare its function bodies with its kernels.",
            )
        variant = Variant(kernels="require")
        return PackageReference("the package with kernels", subject.package, variant)
    # The words come first; a path of such a name is given as ./recorded.
    path = Path(named)
    if os.path.isdir(path) and path.resolve() == subject.model.root.resolve():
        raise ConfigError(
            f"against is {path}, which is itself what is verified: it is equal to itself.",
            hint="Name another one, or functions to run it without kernels and optimisations.",
        )
    model = find_model(path)
    if model is None or not (os.path.exists(path) or path.suffix == ".onnx"):
        raise _unknown(str(named), path)
    # A package shows gates, so routing is compared as well; engines and plain models return
    # outputs.
    if isinstance(model, Deployed) and not model.is_compiled:  # Run as the one that is verified.
        variant = Variant(runtime=subject.runtime, kernels=subject.kernels, apart=True)
        return PackageReference(model.name, model.made_from(None), variant)
    return ModelReference(model)


def _unknown(named: str, path: Path) -> ConfigError:
    hint = did_you_mean(named, WORDS) or f"Expected {', '.join(WORDS)}, a package, engine or model."
    if not os.path.exists(path):
        return ConfigError(f"against is {named}, which is not found.", hint=hint)
    if path.suffix in _CHECKPOINTS:
        return ConfigError(
            f"against is {named}, a checkpoint, which needs PyTorch to run.",
            hint="Give moh_deploy.load_original(...) of it, which says how to load it.",
        )
    return ConfigError(
        f"against is {named}, which is no package, engine, model or checkpoint.", hint=hint
    )


@dataclass(frozen=True)
class ModelReference:
    """A model that returns outputs, and gates only under the names that the package has."""

    model: Model

    @property
    def name(self) -> str:
        return self.model.name

    def answers(self, package: OnnxPackage, samples: Sequence[Sample]) -> Answers:
        """Run the reference and return its answers.

        Raises:
            ConfigError: Its inputs or outputs cannot be matched with the package's.
            MoHDeployError: It fails.
        """
        with self.model.open() as loaded:
            feeds = _feeds(package, [spec.name for spec in loaded.inputs], samples, self.name)
            with _naming(self.name):
                results = [loaded.run(inputs) for inputs in feeds]
        pairs = zip(samples, results, strict=True)
        found = tuple(self._answer(package, sample.known, got) for sample, got in pairs)
        has_gates = all(len(answer.gates) == len(package.manifest.layers) for answer in found)
        return Answers(found, has_gates, _absent(self.name, package, found))

    def _answer(
        self, package: OnnxPackage, known: VectorSet, got: Mapping[str, Array]
    ) -> VectorSet:
        # All gates or none: a comparison with the gates of some layers could not tell flips apart.
        names = package.gate_names if set(package.gate_names) <= got.keys() else ()
        gates = tuple(got[name] for name in names)
        # A foreign model shows no scores, so its margins are not known: infinite excuses no flip.
        unknown = [np.full(gate.shape[:-1], np.inf, np.float32) for gate in gates]  # [B, S]
        rest = {name: value for name, value in got.items() if name not in names}
        outputs = _outputs(package, rest, self.name)
        return VectorSet(known.sizes, known.inputs, outputs, gates, _margins(known, unknown))


@contextmanager
def _naming(model: str) -> Iterator[None]:
    """Say which model it is that does not take the inputs."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(
            f"{model} does not take the inputs that are compared on: {error.message}",
            hint="Both sides get the same inputs: their dtypes and sizes have to suit both.",
        ) from error


def _feeds(
    package: OnnxPackage, theirs: Sequence[str], samples: Sequence[Sample], name: str
) -> list[dict[str, Array]]:
    """Return the inputs of each sample by the names that another model has for them."""
    matched = match_inputs(theirs, [spec.name for spec in package.manifest.inputs], name)
    return [{t: sample.known.inputs[ours] for t, ours in matched.items()} for sample in samples]


def _outputs(package: OnnxPackage, got: Mapping[str, Array], name: str) -> dict[str, Array]:
    matched = match_outputs(list(got), [spec.name for spec in package.manifest.outputs], name)
    return {ours: got[theirs] for ours, theirs in matched.items()}


def _absent(name: str, package: OnnxPackage, found: Sequence[VectorSet]) -> tuple[str, ...]:
    names = [spec.name for spec in package.manifest.outputs]
    absent = [f"'{name}'" for name in names if found and name not in found[0].outputs]
    return (f"{name} has no output {', '.join(absent)}: not compared.",) if absent else ()


def _margins(known: VectorSet, found: Sequence[Array]) -> tuple[Array, ...]:
    """Return the margins of the model that ran; where they are not known, those recorded."""
    recorded = [*known.margins, *[None] * len(found)]
    # All infinite: the scores of the model that ran are not known, see `Recorder.record`.
    return tuple(
        own if was is None or was.shape != own.shape or np.isfinite(own).any() else was
        for own, was in zip(found, recorded, strict=False)
    )
