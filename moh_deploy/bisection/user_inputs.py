"""What a model should compute on a user's inputs: what its float32 form computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from moh_deploy.backends.onnxruntime import open_session
from moh_deploy.package import OnnxPackage, VectorSet
from moh_deploy.validate.samples import Sample


def answered(believed: OnnxPackage, samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """Return samples with outputs and gates.

    Args:
        believed: In float32; its function bodies are run, without optimisations.
        samples: Inputs of a user's, maybe with expected outputs, which stay.
    """
    if not samples:
        return ()
    names = believed.gate_names
    runner = open_session(believed, kernels="off", optimize=False, extra_outputs=names)
    found = []
    for one in samples:
        got = runner.run(one.known.inputs)
        outputs = {spec.name: got[spec.name] for spec in believed.manifest.outputs}
        gates = tuple(got[name] for name in names)
        # How clear each choice was is not known: flips are excused, gates that agree are compared.
        margins = tuple(np.zeros(gate.shape[:-1], np.float32) for gate in gates)
        known = VectorSet(
            one.known.sizes, one.known.inputs, {**outputs, **one.known.outputs}, gates, margins
        )
        found.append(replace(one, known=known))
    return tuple(found)
