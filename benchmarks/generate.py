"""Tokens a second of `moh_deploy.generate`, beside onnxruntime-genai with the same package.

    python benchmarks/generate.py --keep build/generate
    python benchmarks/generate.py --keep build/generate --hidden 512 --inner 1024 --batch 4

A small decoder with random weights: what a step costs around its operators is what shows. Both take
turns, each with a session of its own. A rate counts the tokens behind the first, until the last is
read, by CPU time and on the clock on the wall. Kernels are required, and greedy tokens of both have
to be the same.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median

import numpy as np
from op_timing import WrongOutput
from printing import environment, print_results, versions
from process_cost import load_average
from rich.table import Table
from run_options import positive
from step_models import Sizes, StepModels

import moh_deploy
from moh_deploy.errors import MoHDeployError

SMALL = Sizes(layers=4, hidden=128, inner=256, heads=8, kv_heads=4, vocab=256, positions=1024)
PROMPT = 16
END = 0  # the token with which a text of these models ends

Clock = Callable[[], float]
Tokens = list[list[int]]  # of each text


@dataclass(frozen=True)
class Row:
    """What one loop did.

    Attributes:
        loop: `generate`, or that of genai.
        batch: Texts that are generated at once.
        per_second: New tokens of all texts by CPU time, median over the rounds.
        wall_per_second: The same by the clock on the wall, best of the rounds.
        share: `per_second` over that of genai.
        wall_share: `wall_per_second` over that of genai.
    """

    loop: str
    batch: int
    per_second: float
    wall_per_second: float
    share: float
    wall_share: float


class Marks:
    """Times at which a loop had its first tokens, and its last."""

    def __init__(self) -> None:
        self._tokens = 0

    def mark(self, tokens: int) -> None:
        """Note that so many more tokens are there."""
        self._last = time.process_time(), time.perf_counter()
        if not self._tokens:
            self._first = self._last
        self._tokens += tokens

    def rates(self, batch: int) -> tuple[float, float]:
        """Return tokens behind the first of each text, a second of CPU time, and of the clock on
        the wall.
        """
        tokens = self._tokens - batch
        cpu, wall = (end - start for start, end in zip(self._first, self._last, strict=True))
        return tokens / cpu, tokens / wall


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    start_load = load_average()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="moh-deploy-") as scratch:
        models = StepModels(options.keep or Path(scratch), options.sizes, options.weights)
        try:
            package, bundle = models.package(options.open), models.bundle(options.open)
            for batch in options.batch:
                rows += _measured(package, bundle, batch, options)
        except (MoHDeployError, WrongOutput) as failure:
            print(failure, file=sys.stderr)
            return 1
    packages = ("moh-deploy", "onnxruntime", "onnxruntime-genai", "numpy")
    about = {
        **environment(start_load),
        **versions(packages),
        # Not what pip installed, where the import path names another place.
        "measured": str(Path(moh_deploy.__file__).parent),
        "weights": options.weights,
    }
    title = f"{options.tokens} tokens behind {PROMPT}"
    table = Table(
        "", "batch", "tokens/s of CPU", "of genai's", "tokens/s", "of genai's", title=title
    )
    for row in rows:
        shares = (f"{row.per_second:.0f}", f"{row.share:.2f}x")
        walls = (f"{row.wall_per_second:.0f}", f"{row.wall_share:.2f}x")
        table.add_row(row.loop, str(row.batch), *shares, *walls)
    print_results(about, [asdict(row) for row in rows], [table], as_json=options.json, width=120)
    return 0


def _measured(package: Path, bundle: Path, batch: int, options: argparse.Namespace) -> list[Row]:
    """Let both generate in turn.

    Raises:
        WrongOutput: They generate other tokens.
    """
    draws = np.random.default_rng(0)
    prompts = draws.integers(1, options.sizes.vocab, (batch, PROMPT))
    loops = {"generate": _generated, "onnxruntime-genai": _by_genai}
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in loops}
    for turn in range(options.rounds + 1):  # the first is not counted
        found: list[Tokens] = []
        for name, loop in loops.items():
            marks = Marks()
            found.append(loop(package, bundle, prompts, options.tokens, marks))
            if turn:
                rates[name].append(marks.rates(batch))
        if found[0] != found[1]:
            raise WrongOutput(f"a batch of {batch}: generate and genai make other tokens.")
    figures = {
        name: (median(cpu for cpu, _ in made), max(wall for _, wall in made))
        for name, made in rates.items()
    }
    cpu_of_genai, wall_of_genai = figures["onnxruntime-genai"]
    return [
        Row(name, batch, cpu, wall, cpu / cpu_of_genai, wall / wall_of_genai)
        for name, (cpu, wall) in figures.items()
    ]


def _generated(
    package: Path, bundle: Path, prompts: np.ndarray, count: int, marks: Marks
) -> Tokens:
    """Generate as `moh-deploy generate` does, pieces of text told as they come."""
    report = moh_deploy.generate(
        package,
        tokens=prompts.tolist(),
        max_tokens=count,
        kernels="require",
        on_text=lambda row, piece: marks.mark(1),
    )
    return [list(text.tokens) for text in report.texts]


def _by_genai(package: Path, bundle: Path, prompts: np.ndarray, count: int, marks: Marks) -> Tokens:
    """Generate as programs for onnxruntime-genai do, with each token read."""
    import onnxruntime_genai as og

    model = og.Model(str(bundle))
    settings = og.GeneratorParams(model)
    settings.set_search_options(batch_size=len(prompts), max_length=PROMPT + count, do_sample=False)
    generator = og.Generator(model, settings)
    generator.append_tokens(prompts.astype(np.int32))
    texts: Tokens = [[] for _ in prompts]
    while not generator.is_done():
        generator.generate_next_token()
        new = generator.get_next_tokens()
        for text, token in zip(texts, new, strict=True):
            text.append(int(token))
        marks.mark(len(new))
    # What is behind an end is padding.
    return [text[: text.index(END) + 1] if END in text else text for text in texts]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--tokens", type=positive, default=400, metavar="N", help="new tokens of each text")
    add("--batch", nargs="+", type=positive, default=[1], metavar="N")
    add("--open", type=positive, default=5, metavar="N", help="heads of each token")
    add("--weights", choices=["float32", "int8", "int4"], default="float32")
    add("--rounds", type=positive, default=9, metavar="N")
    add("--keep", type=Path, metavar="DIR", help="where models are kept for the next time")
    add("--json", action="store_true", help="print a list of rows")
    for field in fields(Sizes):
        name, default = field.name.replace("_", "-"), getattr(SMALL, field.name)
        add(f"--{name}", type=positive, default=default, metavar="N")
    options = parser.parse_args(arguments)
    options.sizes = Sizes(*(getattr(options, field.name) for field in fields(Sizes)))
    return options


if __name__ == "__main__":
    sys.exit(main())
