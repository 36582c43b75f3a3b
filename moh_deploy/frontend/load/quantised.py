"""Refuse models whose weights are integers already."""

from __future__ import annotations

import torch

from moh_deploy.errors import CheckpointError


def refuse_quantised(module: torch.nn.Module) -> None:
    """Refuse a module that torch.ao or torchao has quantised: its products are code of their own.

    Raises:
        CheckpointError: Naming the first such part.
    """
    for name, part in module.named_modules():
        kinds = [type(part), *map(type, part.parameters(recurse=False))]
        quantised = next(filter(_is_quantised, kinds), None)
        if quantised is not None:
            raise CheckpointError(
                f"the model is quantised: '{name or 'the model'}' is or holds a"
                f" {quantised.__module__}.{quantised.__name__}.",
                hint="Export the checkpoint in floating point as it was before, then lower the"
                " package: moh-deploy precision.",
            )


def _is_quantised(kind: type) -> bool:
    parts = kind.__module__.split(".")
    return parts[0] == "torchao" or (parts[0] == "torch" and "quantized" in parts)
