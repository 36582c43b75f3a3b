"""Measure how much memory the export of a model directory takes, in copies of its weights.

    python -m tests.text.measure_memory 1.0 /tmp/large

writes a model of about 1 GiB of float32 weights, exports it, and prints the largest sum of what the
command and the processes that it starts hold at a time (PSS: pages that are shared count once).
"""

import itertools
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.text.model_directories import write_plain_torch

GIB = 1 << 30
_SELDOM = 20
_WIDTH, _VOCAB = 2048, 16_384
_LAYER_BYTES = 4 * (2 * _WIDTH * _WIDTH + 2 * _WIDTH * _WIDTH // 4 + 2 * _WIDTH * 3 * _WIDTH)


@dataclass(frozen=True)
class Peak:
    """The most memory at a time.

    Attributes:
        weights: Bytes of the weights.
        private: Bytes that belong to the processes alone: no pages of files.
        everything: With the pages of files that they have mapped.
    """

    weights: int
    private: int
    everything: int


def write_large(root: Path, gib: float) -> int:
    """Write a model directory of about that size, and return the bytes of its weights."""
    embeddings = 2 * 4 * _WIDTH * _VOCAB
    write_plain_torch(
        root,
        shards=4,
        vocab_size=_VOCAB,
        hidden_size=_WIDTH,
        intermediate_size=3 * _WIDTH,
        num_hidden_layers=max(1, round((gib * GIB - embeddings) / _LAYER_BYTES)),
        num_attention_heads=16,
        num_key_value_heads=4,
        routed_heads=7,
    )
    return sum(file.stat().st_size for file in root.glob("*.safetensors"))


def measure_export(root: Path, output: Path, weights: int, *options: str) -> Peak:
    """Export a directory in a process of its own, and watch it.

    Raises:
        RuntimeError: The export failed.
    """
    command = [sys.executable, "-m", "moh_deploy", "export", str(root), "-o", str(output)]
    command += ["--task", "text-generation", "--trust-code", "--verbose", *options]
    private = everything = 0
    with subprocess.Popen(command) as process:
        for sample in itertools.count():
            if process.poll() is not None:
                break
            family = _family(process.pid)
            private = max(private, sum(_bytes(pid, "status", "RssAnon") for pid in family))
            # Linux walks all pages for this one: as often, it would take as long as the export.
            if sample % _SELDOM == 0:
                shares = (_bytes(pid, "smaps_rollup", "Pss") for pid in family)
                everything = max(everything, sum(shares))
            time.sleep(0.05)
    if process.returncode:
        raise RuntimeError(f"export ended with {process.returncode}")
    return Peak(weights, private, everything)


def _family(pid: int) -> list[int]:
    """Return a process and those that it started."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return [pid]
    return [pid, *(item for child in children for item in _family(int(child)))]


def _bytes(pid: int, file: str, name: str) -> int:
    """Return the bytes that a file of a process says; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    except OSError:
        return 0
    found = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return 1024 * int(found[0]) if found else 0


if __name__ == "__main__":
    folder = Path(sys.argv[2])
    size = write_large(folder / "model", float(sys.argv[1]))
    peak = measure_export(folder / "model", folder / "package", size, *sys.argv[3:])
    print(
        f"weights {size / GIB:.2f} GiB; private {peak.private / GIB:.2f} GiB,"
        f" {peak.private / size:.2f} copies; with pages of files {peak.everything / GIB:.2f} GiB,"
        f" {peak.everything / size:.2f} copies"
    )
