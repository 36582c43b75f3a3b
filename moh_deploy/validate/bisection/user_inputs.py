"""Samples of a user's inputs, with the outputs of the model's float32 form as expected ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from moh_deploy.package import OnnxPackage
from moh_deploy.validate.function_bodies import Recorder
from moh_deploy.validate.samples import Sample


def answered(believed: OnnxPackage, samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """Return samples with outputs and gates.

    Args:
        believed: In float32; its function bodies are run, without optimisations.
        samples: Inputs of a user's, maybe with expected outputs, which stay.
    """
    if not samples:
        return ()
    recorder = Recorder.of(believed)
    found = []
    for one in samples:
        known = recorder.record(one.known.inputs)
        outputs = {**known.outputs, **one.known.outputs}
        found.append(replace(one, known=replace(known, outputs=outputs)))
    return tuple(found)
