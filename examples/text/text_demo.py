"""Train a small MoH decoder on Python's help, export it, lower it to int8 and int4, let it write.

What onnxruntime-genai opens is bundled, too, and proven by it where it is installed. Ends with the
perplexity of each form on text that the model has not seen, and with exit code 1 if the package in
float32 differs from the model, or a lowered one foretells the text much worse.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import perplexity
from corpus import load_text, windows
from rich.console import Console
from rich.table import Table
from train_text import LENGTH, STEPS, train, write_directory

from moh_deploy.system.npz import write_npz

MODEL, FLOAT32, INT8, INT4 = "the model in PyTorch", "float32", "int8", "int4"
# How much of its perplexity a form may be off by: rounding of sums, and of weights.
ALLOWED = {FLOAT32: 1e-4, INT8: 0.01, INT4: 0.05}
PROMPT = "The following "
_RECORDED, _JUDGED = 2, 32  # rows of text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work-dir", type=Path, default=Path("build/text"))
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()

    root = options.work_dir
    directory, tokens = root / "model", root / "tokens.npz"
    training, held_out = load_text()
    step(f"Training on {len(training)} bytes of Python's help for {options.steps} steps")
    model = train(training, steps=options.steps)
    write_directory(model, directory)
    # What choices of heads are compared on, and precisions are judged by: text, not chance.
    write_npz(tokens, {"input_ids": windows(training, LENGTH // 4, _RECORDED)})
    packages = make_packages(directory, tokens, root)
    write_text(packages[FLOAT32], directory)
    write_text(packages[INT4])
    bundle(packages[INT4], root / "genai")
    step(f"Perplexity of {_JUDGED} rows of {LENGTH} bytes of topics that are held out")
    rows = windows(held_out, LENGTH + 1, _JUDGED)
    found = {MODEL: perplexity.of_model(model, rows)}
    found |= {form: perplexity.of_package(path, rows) for form, path in packages.items()}
    show(found, packages)
    sys.exit(verdict(found))


def make_packages(directory: Path, tokens: Path, root: Path) -> dict[str, Path]:
    """Export the model directory, and write the package again with weights of 8 and 4 bits."""
    packages = {form: root / form for form in ALLOWED}
    source = packages[FLOAT32]
    moh_deploy(
        *("export", directory, "--output", source, "--task", "text-generation", "--trust-code"),
        *("--inputs", tokens, "--require-layers", "all"),
    )
    for form in (INT8, INT4):
        moh_deploy("precision", source, "--to", form, "--output", packages[form])
    return packages


def write_text(package: Path, original: Path | None = None) -> None:
    """Let a package go on with a prompt; its tokens have to be those of the original."""
    against: list[str | Path] = []
    if original is not None:
        against = ["--against", original, "--trust-code"]
    if importlib.util.find_spec("tokenizers") is not None:
        prompt = ["--prompt", PROMPT]
    else:  # a token is a byte
        prompt = ["--tokens", ",".join(map(str, PROMPT.encode()))]
    moh_deploy("generate", package, *prompt, *against)


def bundle(package: Path, output: Path) -> None:
    """Write what onnxruntime-genai opens, and compare the text that it generates."""
    moh_deploy("bundle", package, "--target", "genai", "--output", output)
    if importlib.util.find_spec("onnxruntime_genai") is not None:
        moh_deploy("verify", output)


def moh_deploy(*arguments: str | Path) -> None:
    """Run the command line tool as a user would; a failure of it ends the demo."""
    words = [str(argument) for argument in arguments]
    step(f"$ moh-deploy {' '.join(words)}")
    finished = subprocess.run([sys.executable, "-m", "moh_deploy", *words], check=False)
    if finished.returncode:
        sys.exit(finished.returncode)


def show(found: Mapping[str, float], packages: Mapping[str, Path]) -> None:
    """Print the table that the demo ends with."""
    table = Table("", "perplexity", "bits a byte", "model, KiB", title="Text that was held out")
    for form, value in found.items():
        files = packages[form].glob("model.onnx*") if form in packages else ()
        size = sum(file.stat().st_size for file in files) / 1024
        kib = f"{size:.0f}" if size else ""
        table.add_row(form, f"{value:.4f}", f"{math.log2(value):.4f}", kib)
    Console().print(table)


def verdict(found: Mapping[str, float]) -> int:
    """Say what is wrong, if anything is, and return the exit code."""
    before = found[MODEL]
    problems = [
        f"in {form} the perplexity is {found[form]:.4f}, that of the model {before:.4f}; allowed"
        f" is {most:.2%} more or less."
        for form, most in ALLOWED.items()
        # Not `>`: a perplexity that is no number is a problem, too.
        if not abs(found[form] / before - 1) <= most
    ]
    for problem in problems:
        print(f"FAILED: {problem}", file=sys.stderr)
    return 1 if problems else 0


def step(what: str) -> None:
    print(f"\n{what}", flush=True)


if __name__ == "__main__":
    main()
