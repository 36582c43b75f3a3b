"""Find what `--against` names: the package run otherwise, another package, an engine, a model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from moh_deploy.errors import ConfigError
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import FUNCTION_BODIES, Deployed, Variant
from moh_deploy.runtime.open_runner import find_model
from moh_deploy.runtime.polygraphy_model import InferenceRunner, PolygraphyModel
from moh_deploy.system.suggest import did_you_mean
from moh_deploy.validate.reference.model_references import ModelReference, PackageReference
from moh_deploy.validate.reference.reference import Reference
from moh_deploy.validate.reference.subject import Subject

WORDS = ("recorded", "functions", "kernels")
_CHECKPOINTS = (".pt", ".pth", ".pt2", ".bin", ".ckpt", ".safetensors")


Against: TypeAlias = str | Path | Reference | InferenceRunner
"""What one is compared with."""


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
    found = tuple(
        _named(name, subject, recorded) if isinstance(name, (str, Path)) else _given(name)
        for name in against
    )
    # Two references of one name could not be told apart in the report or in a baseline file.
    for index, reference in enumerate(found):
        if reference.name in [other.name for other in found[:index]]:
            raise ConfigError(f"against names {reference.name} twice.")
    return found


def function_bodies(package: OnnxPackage) -> PackageReference:
    """Return the package's own function bodies, run with all optimisations off."""
    name = "function bodies with optimisations off (not the original model)"
    return PackageReference(name, package, FUNCTION_BODIES)


def _given(reference: Reference | InferenceRunner) -> Reference:
    if isinstance(reference, Reference):
        return reference
    # By its method: Polygraphy need not be installed.
    if hasattr(reference, "infer"):
        return ModelReference(PolygraphyModel(reference))
    raise ConfigError(
        f"against holds a {type(reference).__name__}.",
        hint="Expected a word, a path, what moh_deploy.load_original returns, or a Polygraphy"
        " runner.",
    )


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
