"""Export the small decoders of the tests, and generate with them as their authors would."""

from collections.abc import Sequence
from pathlib import Path

import torch

from moh_deploy.config.options import ExportOptions
from moh_deploy.frontend import export_package as pipeline
from moh_deploy.package import OnnxPackage


def export_directory(root: Path, output: Path, **options: object) -> OnnxPackage:
    """Export a model directory for text generation, code of its own included."""
    settings = {"task": "text-generation", "trust_code": True, **options}
    pipeline.export_package(ExportOptions(root, output, **settings))
    return OnnxPackage.open(output)


def greedy(model: torch.nn.Module, prompt: Sequence[int], count: int) -> list[int]:
    """Return the likeliest tokens behind a prompt: all computed anew each time, without a cache,
    a mask or a batch.
    """
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            logits = model(torch.tensor([ids]))[0]
            ids.append(int(logits[0, -1].argmax()))
    return ids[len(prompt) :]
