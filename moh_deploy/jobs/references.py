"""What `--against` names: the package run in another way, another package, an engine, a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moh_deploy.backends.onnxruntime import open_session
from moh_deploy.backends.ort_model import model_interface
from moh_deploy.backends.runner import Kernels, Runner
from moh_deploy.backends.trt.engine_reading import is_engine_dir, read_engine_dir
from moh_deploy.errors import ConfigError
from moh_deploy.jobs.engine_runs import open_engine
from moh_deploy.jobs.subject import Subject
from moh_deploy.npz import Array
from moh_deploy.package import OnnxPackage, VectorSet
from moh_deploy.suggest import did_you_mean
from moh_deploy.validate.matching import match_inputs, match_outputs
from moh_deploy.validate.reference import Answers, Reference
from moh_deploy.validate.samples import Sample

WORDS = ("recorded", "functions", "kernels")
_CHECKPOINTS = (".pt", ".pth", ".pt2", ".bin", ".ckpt", ".safetensors")


@dataclass(frozen=True)
class RunnerReference:
    """What a model computes that is run on the same inputs.

    Attributes:
        name: In the words of a report.
        inputs, outputs: Names of the model's inputs and outputs, in order.
        gates: Names of the gates of each layer, which it returns too; empty if it does not.
        loaded: Loads it.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    gates: tuple[str, ...]
    loaded: Callable[[], AbstractContextManager[Runner]]

    def answers(self, package: OnnxPackage, samples: Sequence[Sample]) -> Answers:
        """Run it.

        Raises:
            ConfigError: Its inputs or outputs cannot be matched with the package's.
            BackendError: The runtime failed.
        """
        manifest = package.manifest
        ours = tuple(spec.name for spec in manifest.outputs)
        feeds = match_inputs(self.inputs, [spec.name for spec in manifest.inputs], self.name)
        outputs = match_outputs(self.outputs, ours, self.name)
        has_gates = len(self.gates) == len(manifest.layers)
        found = []
        with self.loaded() as runner:
            for one in (sample.known for sample in samples):
                got = runner.run({theirs: one.inputs[name] for theirs, name in feeds.items()})
                computed = tuple(got[name] for name in self.gates if has_gates)
                results = {name: got[theirs] for name, theirs in outputs.items()}
                margins = _margins(one, computed)
                found.append(VectorSet(one.sizes, one.inputs, results, computed, margins))
        return Answers(tuple(found), has_gates, tuple(self._notes(ours, outputs, has_gates)))

    def _notes(
        self, ours: Sequence[str], outputs: dict[str, str], has_gates: bool
    ) -> Iterator[str]:
        absent = [f"'{name}'" for name in ours if name not in outputs]
        if absent:
            yield f"{self.name} has no output {', '.join(absent)}: not compared."
        if self.gates and not has_gates:
            yield f"{self.name} has {len(self.gates)} MoH layers: routing was not compared."


def references(
    against: Sequence[str | Path | Reference], subject: Subject, recorded: Reference
) -> tuple[Reference, ...]:
    """Return what words, paths and references name, in their order.

    Args:
        recorded: What the word `recorded` names.

    Raises:
        ConfigError: One names nothing, the same as another, or the package as it is itself.
        PackageError: A package, engine or model that is named cannot be read.
    """
    found = tuple(
        _reference(one, subject, recorded) if isinstance(one, (str, Path)) else one
        for one in against
    )
    for index, one in enumerate(found):
        if one.name in [other.name for other in found[:index]]:
            raise ConfigError(f"against names {one.name} twice.")
    return found


def function_bodies(package: OnnxPackage) -> RunnerReference:
    """Return the package's own function bodies, run with all optimisations off."""
    name = "function bodies with optimisations off (not the original model)"
    return _package_reference(name, package, "off", optimize=False)


def _reference(named: str | Path, subject: Subject, recorded: Reference) -> Reference:
    if named == "recorded":
        return recorded
    if named == "functions":
        return function_bodies(subject.package)
    if named == "kernels":
        return _kernels(subject)
    path = Path(named)
    if is_engine_dir(path):
        return _engine(path, subject)
    if path.is_dir():
        return _other_package(path, subject)
    if path.suffix == ".onnx":
        return _onnx_file(path)
    raise _unknown(str(named), path)


def _kernels(subject: Subject) -> RunnerReference:
    if subject.kernels != "off" and subject.engine is None:
        raise ConfigError(
            f"against is kernels, and {subject.root} itself runs with kernels where there are any.",
            hint="Give --kernels off to compare its function bodies with its kernels.",
        )
    return _package_reference("the package with kernels", subject.package, "require")


def _other_package(root: Path, subject: Subject) -> RunnerReference:
    if root.resolve() == subject.root.resolve():
        raise ConfigError(
            f"against is {root}, the package that is verified: it is equal to itself.",
            hint="Name another one, or functions to run it without kernels and optimisations.",
        )
    # Run as the one that is verified.
    return _package_reference(f"package {root}", OnnxPackage.open(root), subject.kernels)


def _package_reference(
    name: str, package: OnnxPackage, kernels: Kernels, *, optimize: bool = True
) -> RunnerReference:
    @contextmanager
    def loaded() -> Iterator[Runner]:
        yield open_session(
            package, kernels=kernels, optimize=optimize, extra_outputs=package.gate_names
        )

    manifest = package.manifest
    return RunnerReference(
        name,
        tuple(spec.name for spec in manifest.inputs),
        tuple(spec.name for spec in manifest.outputs),
        package.gate_names,
        loaded,
    )


def _engine(root: Path, subject: Subject) -> RunnerReference:
    if root.resolve() == subject.root.resolve():
        raise ConfigError(f"against is {root}, the engine that is verified: it is equal to itself.")
    manifest = read_engine_dir(root)

    @contextmanager
    def loaded() -> Iterator[Runner]:
        runner = open_engine(root, "auto")
        with runner.engine:
            yield runner

    inputs, outputs = (
        tuple(spec.name for spec in specs) for specs in (manifest.inputs, manifest.outputs)
    )
    return RunnerReference(f"engine {root}", inputs, outputs, (), loaded)


def _onnx_file(path: Path) -> RunnerReference:
    inputs, outputs = model_interface(path)

    @contextmanager
    def loaded() -> Iterator[Runner]:
        yield open_session(path)

    return RunnerReference(f"ONNX model {path}", inputs, outputs, (), loaded)


def _unknown(named: str, path: Path) -> ConfigError:
    if path.suffix in _CHECKPOINTS:
        return ConfigError(
            f"against is {named}, a checkpoint, which needs PyTorch to run.",
            hint="Give moh_deploy.load_original(...) of it, which says how to load it.",
        )
    hint = did_you_mean(named, WORDS) or f"Expected {', '.join(WORDS)}, a package, engine or model."
    what = "does not exist" if not path.exists() else "is no package, engine, model or checkpoint"
    return ConfigError(f"against is {named}, which {what}.", hint=hint)


def _margins(recorded: VectorSet, gates: Sequence[Array]) -> tuple[Array, ...]:
    """Return the recorded margins; else such as excuse nothing: the scores are not known here."""
    if [one.shape for one in recorded.margins] == [one.shape[:-1] for one in gates]:
        return recorded.margins
    return tuple(np.full(one.shape[:-1], np.inf, np.float32) for one in gates)
