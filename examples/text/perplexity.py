"""Measure how well a model, or a package of it, foretells a text that it was not trained on."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from modeling_moh_text import MoHTextForCausalLM

from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.runtime.text.interface import TextInterface


def of_model(model: MoHTextForCausalLM, rows: np.ndarray) -> float:
    """Return the perplexity of a token, over rows of text [rows, tokens]."""
    with torch.no_grad():
        logits = model(torch.from_numpy(rows[:, :-1]))[0]
    return _perplexity(logits.numpy(), rows[:, 1:])


def of_package(root: Path, rows: np.ndarray) -> float:
    """Return the same of a package, which `--task text-generation` made."""
    package = OnnxPackage.open(root)
    tokens = rows[:, :-1]
    caches = TextInterface.of(package.manifest, str(root)).empty_caches(*tokens.shape)
    given = {"input_ids": tokens, "attention_mask": np.ones_like(tokens), **caches}
    return _perplexity(open_runner(package, Variant()).run(given)["logits"], rows[:, 1:])


def _perplexity(logits: np.ndarray, tokens: np.ndarray) -> float:
    """Return e to the mean surprise of logits [rows, n, vocab] at what came, [rows, n]."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    surprise = np.log(np.exp(shifted).sum(axis=-1))
    surprise -= np.take_along_axis(shifted, tokens[..., None], axis=-1)[..., 0]
    return math.exp(surprise.mean())
