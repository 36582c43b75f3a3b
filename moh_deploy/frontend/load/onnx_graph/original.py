"""An ONNX file as ONNX Runtime computes it: the original that all made of it is compared with."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from moh_deploy.frontend.fx.arrays import to_numpy, to_torch
from moh_deploy.frontend.load.onnx_graph.file import OnnxSource
from moh_deploy.runtime.base import Runner


@dataclass(frozen=True)
class OnnxOriginal:
    """A file that was opened.

    Attributes:
        source: What the file holds.
        runner: Runs it as it is written: unoptimised, without kernels of ours.
    """

    source: OnnxSource
    runner: Runner

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the outputs of one run, in order."""
        arrays = [to_numpy(tensor) for tensor in inputs]
        named = zip(self.source.inputs, arrays, strict=True)
        found = self.runner.run({spec.name: array for spec, array in named})
        return tuple(to_torch(found[name]) for name in self.source.outputs)
