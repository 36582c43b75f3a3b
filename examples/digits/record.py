"""Record what the PyTorch model computes, gates included, as vectors to judge a package by."""

from __future__ import annotations

import numpy as np
import torch
from model import DigitsViT, TwoStageRouter
from torch import Tensor, nn

from moh_deploy.package import VectorSet


@torch.no_grad()
def record(model: DigitsViT, images: Tensor) -> VectorSet:
    """Run the model once and keep its inputs, logits, and each layer's gates and margins."""
    gates: list[np.ndarray] = []
    margins: list[np.ndarray] = []

    def keep(router: nn.Module, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
        assert isinstance(router, TwoStageRouter)
        gates.append(outputs[0].numpy())
        margins.append(_margin(router, inputs[0]).numpy())

    routers = [module for module in model.modules() if isinstance(module, TwoStageRouter)]
    handles = [router.register_forward_hook(keep) for router in routers]
    try:
        logits = model(images)
    finally:
        for handle in handles:
            handle.remove()
    return VectorSet(
        sizes={"batch": len(images)},
        inputs={"images": images.numpy()},
        outputs={"logits": logits.numpy()},
        gates=tuple(gates),
        margins=tuple(margins),
    )


def _margin(router: TwoStageRouter, x: Tensor) -> Tensor:
    """Return by how much the last chosen head beat the first one left out, [B, S]."""
    scores = torch.sort(router.routed(x).softmax(dim=-1), dim=-1, descending=True).values
    return scores[..., router.top_k - 1] - scores[..., router.top_k]
