"""Train a small MoH-ViT on real digits, export it, and compare every held-out image.

Ends with a table, and with exit code 1 if the package differs from the model in any way.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from model import DigitsViT
from record import record
from rich.console import Console
from rich.table import Table
from train import EPOCHS, Split, load_splits, save_checkpoint, train

from moh_deploy.backends.onnxruntime import open_session
from moh_deploy.package import OnnxPackage, VectorSet
from moh_deploy.validate.parity import compare
from moh_deploy.validate.parity_report import ParityReport

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Comparison:
    """What PyTorch and the package say about the held-out images.

    Attributes:
        labels: The true classes [N].
        torch_classes: What the model predicts [N].
        package_classes: What the package predicts [N], image by image.
        parity: Outputs, gates and chosen heads of all images, compared.
        active_share: Share of (token, head) pairs that the router left on.
    """

    labels: np.ndarray
    torch_classes: np.ndarray
    package_classes: np.ndarray
    parity: ParityReport
    active_share: float

    @property
    def same_predictions(self) -> int:
        return int((self.torch_classes == self.package_classes).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work-dir", type=Path, default=Path("build/digits"))
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--min-accuracy", type=float, default=0.96)
    options = parser.parse_args()

    checkpoint, package_dir = options.work_dir / "digits.pt", options.work_dir / "package"
    training, held_out = load_splits()
    step(f"Training on {len(training.labels)} images for {options.epochs} epochs")
    model = train(training, epochs=options.epochs)
    save_checkpoint(model, checkpoint, epochs=options.epochs)
    moh_deploy("export", checkpoint, "--output", package_dir, "--config", HERE / "export.yaml")
    moh_deploy("verify", package_dir)
    package = OnnxPackage.open(package_dir)
    step(f"Running {len(held_out.labels)} held-out images through PyTorch and through the package")
    comparison = compare_images(model, package, held_out)
    show(comparison, package)
    sys.exit(verdict(comparison, options.min_accuracy))


def moh_deploy(*arguments: str | Path) -> None:
    """Run the command line tool as a user would; a failure of it ends the demo."""
    words = [str(argument) for argument in arguments]
    step(f"$ moh-deploy {' '.join(words)}")
    finished = subprocess.run([sys.executable, "-m", "moh_deploy", *words], check=False)
    if finished.returncode:
        sys.exit(finished.returncode)


def compare_images(model: DigitsViT, package: OnnxPackage, images: Split) -> Comparison:
    """Run every image through both: all at once for the numbers, one by one for the classes."""
    expected = record(model, images.images)
    runner = open_session(package, extra_outputs=package.gate_names)
    alone = [
        runner.run({"images": image[None]})["logits"][0] for image in expected.inputs["images"]
    ]
    return Comparison(
        labels=images.labels.numpy(),
        torch_classes=expected.outputs["logits"].argmax(axis=1),
        package_classes=np.argmax(alone, axis=1),
        parity=compare(package, runner, [expected], reference="the model in PyTorch"),
        active_share=active_share(expected),
    )


def active_share(vectors: VectorSet) -> float:
    """Return the share of gates that are open, over all layers."""
    return float(np.mean([gates != 0 for gates in vectors.gates]))


def show(comparison: Comparison, package: OnnxPackage) -> None:
    """Print the table that the demo ends with."""
    total = len(comparison.labels)
    layers = package.manifest.layers
    table = Table(
        "Held-out images", "PyTorch", "Package", title="Digits: the model and its package"
    )
    for name, torch_side, package_side in (
        (
            "accuracy",
            f"{np.mean(comparison.torch_classes == comparison.labels):.2%}",
            f"{np.mean(comparison.package_classes == comparison.labels):.2%}",
        ),
        ("same prediction", "", f"{comparison.same_predictions}/{total}"),
        ("largest error of a logit", "", f"{comparison.parity.max_abs_error:.1e}"),
        ("same heads chosen", "", f"{comparison.parity.routing_agreement:.4%}"),
        ("MoH layers, replaced", "", f"{len(layers)}, {sum(one.replaced for one in layers)}"),
        ("heads active", f"{comparison.active_share:.1%}", ""),
    ):
        table.add_row(name, torch_side, package_side)
    Console().print(table)


def verdict(comparison: Comparison, min_accuracy: float) -> int:
    """Say what is wrong, if anything is, and return the exit code."""
    total = len(comparison.labels)
    accuracy = float(np.mean(comparison.package_classes == comparison.labels))
    problems = list(comparison.parity.reasons)
    if comparison.same_predictions != total:
        problems.append(f"{total - comparison.same_predictions} of {total} predictions differ.")
    if accuracy < min_accuracy:
        problems.append(f"the accuracy is {accuracy:.2%}, expected at least {min_accuracy:.2%}.")
    for problem in problems:
        print(f"FAILED: {problem}", file=sys.stderr)
    return 1 if problems else 0


def step(what: str) -> None:
    print(f"\n{what}", flush=True)


if __name__ == "__main__":
    main()
