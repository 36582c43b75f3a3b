"""Train a small MoH-ViT on real digits, export it, and compare every held-out image.

The package runs on the CPU kernels where they are installed, and in any case as function bodies.
Ends with a table, and with exit code 1 if the package differs from the model in any way, or if the
kernels are there but not used.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from record import record
from rich.console import Console
from rich.table import Table
from train import EPOCHS, load_splits, save_checkpoint, train

from moh_deploy.native import kernel_library
from moh_deploy.package import OnnxPackage, VectorSet
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.kernel_use import Kernels
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.system.npz import write_npz
from moh_deploy.validate.compare.parity import compare
from moh_deploy.validate.compare.parity_report import ParityReport

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Comparison:
    """What PyTorch and the package say about the held-out images, the package run in one way.

    Attributes:
        labels: The true classes [N].
        torch_classes: What the model predicts [N].
        package_classes: What the package predicts [N], image by image.
        parity: Outputs, gates and chosen heads of all images, compared; and what ran them.
        active_share: Share of (token, head) pairs that the router left on.
    """

    labels: np.ndarray
    torch_classes: np.ndarray
    package_classes: np.ndarray
    parity: ParityReport
    active_share: float

    @property
    def torch_accuracy(self) -> float:
        return float(np.mean(self.torch_classes == self.labels))

    @property
    def accuracy(self) -> float:
        return float(np.mean(self.package_classes == self.labels))

    @property
    def same_predictions(self) -> int:
        return int((self.torch_classes == self.package_classes).sum())

    @property
    def run_by(self) -> str:
        """What ran the MoH layers, as read from the session."""
        kernel = f"kernel ({self.parity.kernels.instruction_set})"
        if not self.parity.function_nodes:
            return kernel
        if not self.parity.kernel_nodes:
            return "function body"
        return f"{kernel}: {self.parity.kernel_nodes}, function body: {self.parity.function_nodes}"


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
    config = HERE / "export.yaml"  # it names the code of model.py, hence --trust-code
    moh_deploy("export", checkpoint, "--output", package_dir, "--config", config, "--trust-code")
    moh_deploy("verify", package_dir)
    package = OnnxPackage.open(package_dir)
    step(f"Running {len(held_out.labels)} held-out images through PyTorch and through the package")
    expected = record(model, held_out.images)
    labels = held_out.labels.numpy()
    verify_accuracy(package_dir, expected, labels)
    ways: tuple[Kernels, ...] = ("auto", "off") if kernel_library() else ("auto",)
    comparisons = [compare_images(package, expected, labels, kernels=way) for way in ways]
    show(comparisons, package)
    sys.exit(max(verdict(comparison, options.min_accuracy) for comparison in comparisons))


def moh_deploy(*arguments: str | Path) -> None:
    """Run the command line tool as a user would; a failure of it ends the demo."""
    words = [str(argument) for argument in arguments]
    step(f"$ moh-deploy {' '.join(words)}")
    finished = subprocess.run([sys.executable, "-m", "moh_deploy", *words], check=False)
    if finished.returncode:
        sys.exit(finished.returncode)


def verify_accuracy(package_dir: Path, expected: VectorSet, labels: np.ndarray) -> None:
    """Compare the accuracy on held-out images with that of the model in PyTorch."""
    images, labels_file = (package_dir.parent / name for name in ("held-out.npz", "labels.npy"))
    write_npz(images, {**expected.inputs, **expected.outputs})
    np.save(labels_file, labels)
    policy = HERE / "policy.yaml"
    moh_deploy(
        "verify", package_dir, "--inputs", images, "--labels", labels_file, "--policy", policy
    )


def compare_images(
    package: OnnxPackage, expected: VectorSet, labels: np.ndarray, *, kernels: Kernels
) -> Comparison:
    """Run every image: all at once for the numbers, one by one for the classes."""
    runner = open_runner(package, Variant(kernels=kernels, extra_outputs=package.gate_names))
    alone = [
        runner.run({"images": image[None]})["logits"][0] for image in expected.inputs["images"]
    ]
    return Comparison(
        labels=labels,
        torch_classes=expected.outputs["logits"].argmax(axis=1),
        package_classes=np.argmax(alone, axis=1),
        parity=compare(package, runner, [expected], reference="the model in PyTorch"),
        active_share=active_share(expected),
    )


def active_share(vectors: VectorSet) -> float:
    """Return the share of gates that are open, over all layers."""
    return float(np.mean([gates != 0 for gates in vectors.gates]))


def show(comparisons: Sequence[Comparison], package: OnnxPackage) -> None:
    """Print the table that the demo ends with: the package as it runs, then without kernels."""
    first = comparisons[0]
    layers = package.manifest.layers
    sides = ["Package", "Package, kernels off"][: len(comparisons)]
    table = Table("Held-out images", "PyTorch", *sides, title="Digits: the model and its package")
    replaced = f"{len(layers)}, {sum(layer.replaced for layer in layers)}"
    for name, torch_side, *package_sides in (
        ("accuracy", f"{first.torch_accuracy:.2%}", *(f"{c.accuracy:.2%}" for c in comparisons)),
        ("same prediction", "", *(f"{c.same_predictions}/{len(c.labels)}" for c in comparisons)),
        ("largest logit error", "", *(f"{c.parity.max_abs_error:.1e}" for c in comparisons)),
        ("same heads chosen", "", *(f"{c.parity.routing_agreement:.4%}" for c in comparisons)),
        ("MoH layers run by", "", *(c.run_by for c in comparisons)),
        ("MoH layers, replaced", "", *(replaced for _ in comparisons)),
        ("heads active", f"{first.active_share:.1%}"),
    ):
        table.add_row(name, torch_side, *package_sides)
    Console().print(table)
    print(f"MoH layers run by: {first.run_by}")
    print(first.parity.kernels.describe())


def verdict(comparison: Comparison, min_accuracy: float) -> int:
    """Say what is wrong, if anything is, and return the exit code."""
    total = len(comparison.labels)
    problems = list(comparison.parity.reasons)
    if comparison.parity.kernels.library is not None and comparison.parity.function_nodes:
        problems.append(f"the kernels are there but not used: {comparison.run_by}.")
    if comparison.same_predictions != total:
        problems.append(f"{total - comparison.same_predictions} of {total} predictions differ.")
    if comparison.accuracy < min_accuracy:
        problems.append(
            f"the accuracy is {comparison.accuracy:.2%}, expected at least {min_accuracy:.2%}."
        )
    for problem in problems:
        print(f"FAILED: {problem}", file=sys.stderr)
    return 1 if problems else 0


def step(what: str) -> None:
    print(f"\n{what}", flush=True)


if __name__ == "__main__":
    main()
