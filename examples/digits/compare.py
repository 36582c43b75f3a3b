"""Decide whether MoH is worth it for the digits: train it and its rivals, and compare all of them.

Trains the MoH-ViT and a dense one the same way, exports both, and has `moh-deploy compare` decide
by plan.yaml, on images that were held out. What wins is up to the plan, the images and this
machine. Leaves the report in build/digits/decision.html and .md.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from demo import HERE, moh_deploy, step
from model import DigitsViT
from train import EPOCHS, Split, load_splits, save_checkpoint, train

from moh_deploy.system.npz import write_npz

# Of the split and of both trainings, as the goal of plan.yaml names it: written down before the
# first run, and another one than the demo's, by whose images the model was developed.
PLANNED_SEED = 2026
# Where plan.yaml expects it.
WORK_DIR = HERE.parents[1] / "build" / "digits"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--seed", type=int, default=PLANNED_SEED, help="another is no run of it")
    options = parser.parse_args()

    checkpoint, package = WORK_DIR / "digits.pt", WORK_DIR / "package"
    training, held_out = load_splits(options.seed)
    WORK_DIR.mkdir(parents=True, exist_ok=True)
    step(f"Training MoH and dense on {len(training.labels)} images for {options.epochs} epochs")
    moh, dense = train_both(training, epochs=options.epochs, seed=options.seed)
    save_checkpoint(moh, checkpoint, epochs=options.epochs, seed=options.seed)
    write_plain_onnx(dense, training.images[:4], WORK_DIR / "dense.onnx")
    write_images(training, held_out)
    config = HERE / "export.yaml"  # it names the code of model.py, hence --trust-code
    moh_deploy("export", checkpoint, "--output", package, "--config", config, "--trust-code")
    reports = [WORK_DIR / f"decision.{suffix}" for suffix in ("html", "md")]
    moh_deploy(
        *("compare", "--plan", HERE / "plan.yaml"),
        *("--html", reports[0], "--markdown", reports[1]),
    )


def train_both(training: Split, *, epochs: int, seed: int) -> tuple[DigitsViT, DigitsViT]:
    """Train the model with MoH and the dense one, side by side: each takes one thread."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        moh = pool.submit(train, training, epochs=epochs, seed=seed)
        dense = pool.submit(train, training, epochs=epochs, seed=seed, dense=True)
        return moh.result(), dense.result()


def write_plain_onnx(model: DigitsViT, images: torch.Tensor, path: Path) -> None:
    """Export a model as anybody would who has no MoH: by torch's own exporter."""
    torch.onnx.export(
        model,
        (images,),
        path,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def write_images(training: Split, held_out: Split) -> None:
    """Write images to judge by, and those that heads are counted on where some are pruned."""
    write_npz(WORK_DIR / "training.npz", {"images": training.images.numpy()})
    write_npz(WORK_DIR / "held-out.npz", {"images": held_out.images.numpy()})
    np.save(WORK_DIR / "labels.npy", held_out.labels.numpy())


if __name__ == "__main__":
    main()
