"""Run an original model again on a package's inputs, and record how its layers route."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch.export import ExportedProgram

from moh_deploy.errors import ConfigError, MoHDeployError
from moh_deploy.frontend.inputs.npz_inputs import inputs_of_package
from moh_deploy.frontend.load.model import LoadedModel
from moh_deploy.frontend.normalize import normalize
from moh_deploy.frontend.prove import original
from moh_deploy.frontend.prove.measured_rounding import ValidElements
from moh_deploy.frontend.recognize import recognize
from moh_deploy.frontend.rewrite import Rewrite, insert
from moh_deploy.frontend.rewrite.rewritten import view_attention
from moh_deploy.frontend.trace import trace
from moh_deploy.graph.export_names import layer_names
from moh_deploy.package import Manifest, OnnxPackage, VectorSet
from moh_deploy.package.cache_buffers import in_given_buffers
from moh_deploy.system.user_code import describe_error
from moh_deploy.validate.reference.reference import Answers
from moh_deploy.validate.reference.samples import Sample
from moh_deploy.validate.reference.valid_tokens import ValidTokens


@dataclass(frozen=True)
class Traced:
    """A program in which new operators stand beside the original ones."""

    program: ExportedProgram
    rewrites: Sequence[Rewrite]  # the MoH layers, in the order in which they run

    @property
    def layers(self) -> list[str]:
        """Their names, as a package has them."""
        return layer_names([rewrite.layer.path for rewrite in self.rewrites])


def answers_of(
    model: LoadedModel,
    name: str,
    package: OnnxPackage,
    samples: Sequence[Sample],
    traced: dict[Path, Traced],
) -> Answers:
    """Run a model eagerly, and beside it the program that is traced from it.

    Args:
        name: Of the model, for messages.
        traced: The program for each package, by directory; added if it is not there.

    Raises:
        ConfigError: The model does not take the package's inputs, has another number of outputs, or
            other MoH layers.
        ExportError: It cannot be traced, or what was traced is not the model.
    """
    # Tracing takes an example, and it is missing.
    if not samples:
        return Answers((), has_gates=True)
    model = model.called_by(package.manifest)
    try:
        with original.one_thread_if_small(model):
            runs = [_run(model, sample, package.manifest) for sample in samples]
            if package.root not in traced:
                # Recorded first are the example's sizes. Sizes of 1 would count as fixed.
                example = package.vectors[0] if package.vectors else samples[0].known
                given = inputs_of_package(example.inputs, package.manifest)
                program = normalize(trace(model, given))
                rewrites = view_attention(program, insert(program, recognize(program)))
                traced[package.root] = Traced(program, rewrites)
            found = traced[package.root]
            layers, expected = found.layers, package.manifest.layers
            if len(layers) != len(expected):
                raise ConfigError(
                    f"it has {len(layers)} MoH layers ({', '.join(layers)}), the package"
                    f" {len(expected)}.",
                    hint="Compare a package with a checkpoint of the same architecture.",
                )
            valid = [sample.valid for sample in samples]
            recorded, without = _recorded(found, runs, valid, package.manifest)
            vectors = list(recorded)
            if package.manifest.caches is not None:
                # As runs of a package whose caches are in place.
                for number, (run, sample) in enumerate(zip(recorded, samples, strict=True)):
                    inputs, sizes = sample.known.inputs, sample.known.sizes
                    outputs = in_given_buffers(run.outputs, inputs, package.manifest)
                    vectors[number] = replace(run, inputs=inputs, outputs=outputs, sizes=sizes)
    except MoHDeployError as error:
        raise type(error)(f"{name}: {error.message}", hint=error.hint) from error
    notes = tuple(_notes(model, name, layers, package.manifest))
    return Answers(tuple(vectors), has_gates=True, notes=notes, without_gates=without)


def _recorded(
    traced: Traced,
    runs: Sequence[original.OriginalRun],
    valid: Sequence[ValidTokens | None],
    manifest: Manifest,
) -> tuple[tuple[VectorSet, ...], dict[int, str]]:
    """Return what is compared with, and why some of it has no gates.

    The trace may demand sizes that the model itself does not: a decoding step is one token.
    """
    outputs = [spec.name for spec in manifest.outputs]
    vectors, without = [], {}
    for number, (run, tokens) in enumerate(zip(runs, valid, strict=True)):
        elements = ValidElements.of(traced.program, run.inputs, outputs).where(tokens)
        found = original.try_to_record(
            traced.program, traced.rewrites, (), run, outputs, valid=elements
        )
        if isinstance(found, original.DoesNotRun):
            without[number] = (
                f"The traced program, which shows gates, does not run{run.at}, where the original"
                f" model does ({found.why}): outputs alone are compared there, and no routing."
            )
        recording = None if isinstance(found, original.DoesNotRun) else found
        vectors.append(original.recorded_vectors(run, recording, outputs))
    return tuple(vectors), without


def _run(model: LoadedModel, sample: Sample, manifest: Manifest) -> original.OriginalRun:
    inputs = inputs_of_package(sample.known.inputs, manifest)
    outputs = [spec.name for spec in manifest.outputs]
    try:
        found = original.run_original(model, [item.value for item in inputs])
    except Exception as error:  # It is the user's own code, which may fail in any way.
        given = ", ".join(map(original.input_text, inputs))
        raise ConfigError(
            f"it fails on the package's inputs ({given}): {describe_error(error)}.",
            hint="It has to take them as the original did. If its dtype is another one than the"
            " package's, --dtype brings it there.",
        ) from error
    if len(found) != len(outputs):
        raise ConfigError(
            f"it returns {len(found)} tensors, the package {len(outputs)}: {', '.join(outputs)}.",
            hint="Give the checkpoint that the package was made from, or one of the same model.",
        )
    return original.OriginalRun(inputs, found)


def _notes(
    model: LoadedModel, name: str, layers: Sequence[str], manifest: Manifest
) -> Iterator[str]:
    recorded, given = manifest.checkpoint_sha256, model.checkpoint_sha256
    if recorded is not None and given is not None and recorded != given:
        yield (
            f"The package was made from another checkpoint (sha256 {recorded[:12]}...) than the"
            f" {name} ({given[:12]}...)."
        )
    # Layers are matched by the order in which they run; names change with a refactoring.
    pairs = zip(layers, manifest.layers, strict=True)
    renamed = [f"'{mine}' as '{layer.path}'" for mine, layer in pairs if mine != layer.path]
    if renamed:
        yield f"Layers are compared in their order: {', '.join(renamed)}."
