"""Train the digits model: `python examples/digits/train.py --output digits.pt`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from model import IMAGE_SIZE, DigitsViT
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

SEED = 7
BATCH_SIZE = 64
LEARNING_RATE = 5e-3
BALANCE_WEIGHT = 0.01
EPOCHS = 40


@dataclass(frozen=True)
class Split:
    """Images [N, 1, 8, 8] in [0, 1] and labels [N]."""

    images: Tensor
    labels: Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small MoH-ViT on scikit-learn's digits.")
    parser.add_argument("--output", type=Path, required=True, help="checkpoint to write")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    options = parser.parse_args()
    training, held_out = load_splits()
    model = train(training, epochs=options.epochs)
    save_checkpoint(model, options.output, epochs=options.epochs)
    print(f"held-out accuracy {accuracy(model, held_out):.2%}")


def load_splits(seed: int = SEED) -> tuple[Split, Split]:
    """Return the training split and the held-out fifth, the same ones for the same seed."""
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 16).astype(np.float32).reshape(-1, 1, IMAGE_SIZE, IMAGE_SIZE)
    parts = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=seed)
    train_x, test_x, train_y, test_y = (torch.from_numpy(part) for part in parts)
    return Split(train_x, train_y), Split(test_x, test_y)


def train(data: Split, *, epochs: int, dense: bool = False, seed: int = SEED) -> DigitsViT:
    """Train a new model from a fixed seed; progress goes to stderr."""
    torch.set_num_threads(1)  # Faster for matrices this small, and the same sums on any machine.
    torch.manual_seed(seed)
    model = DigitsViT(dense=dense).train()
    steps = epochs * (len(data.labels) // BATCH_SIZE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    for epoch in range(1, epochs + 1):
        losses = []
        for batch in _batches(data):
            logits, balance = model.logits_and_balance(_shifted(batch.images))
            loss = F.cross_entropy(logits, batch.labels, label_smoothing=0.1)
            optimizer.zero_grad()
            torch.autograd.backward(loss + BALANCE_WEIGHT * balance)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        _report(epoch, epochs, float(np.mean(losses)))
    return model.eval()


def save_checkpoint(model: DigitsViT, path: Path, *, epochs: int, seed: int = SEED) -> None:
    """Write what a training script usually writes: the weights under a key, beside other state."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": model.state_dict(), "epochs": epochs, "seed": seed}, path)


@torch.no_grad()
def accuracy(model: DigitsViT, data: Split) -> float:
    """Return the share of images whose likeliest class is their label."""
    correct: Tensor = model(data.images).argmax(dim=1) == data.labels
    return correct.float().mean().item()


def _batches(data: Split) -> list[Split]:
    order = torch.split(torch.randperm(len(data.labels)), BATCH_SIZE)
    return [
        Split(data.images[chosen], data.labels[chosen])
        for chosen in order
        if len(chosen) == BATCH_SIZE
    ]


def _shifted(images: Tensor) -> Tensor:
    """Move each image by up to one pixel each way: a digit stays the same digit."""
    padded = F.pad(images, (1, 1, 1, 1))
    offsets = torch.randint(0, 3, (len(images), 2)).tolist()
    windows = [
        image[:, y : y + IMAGE_SIZE, x : x + IMAGE_SIZE]
        for image, (y, x) in zip(padded, offsets, strict=True)
    ]
    return torch.stack(windows)


def _report(epoch: int, epochs: int, loss: float) -> None:
    if epoch % 10 == 0 or epoch == epochs:
        print(f"epoch {epoch}/{epochs}  loss {loss:.3f}", file=sys.stderr)


if __name__ == "__main__":
    main()
