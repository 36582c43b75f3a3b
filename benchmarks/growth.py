"""Measure how export, verify, serve and compare grow with models, clients, samples and workers.

One size doubles at a time. A fit to three sizes predicts the fourth before that runs.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen, check_output

import numpy as np
from process_cost import Cost, load_average, machine, measure

HERE = Path(__file__).parent
CODE_DIRS = [str(HERE), str(HERE.parent / "examples" / "digits")]
PYTHON = [sys.executable, "-m"]
DECODER = """from models import Decoder
def build(): return Decoder({width}, {layers}, 256,
    num_heads=8, num_kv_heads=2, num_shared_heads=4, top_k=2)"""
CLASSIFIER = "from model import DigitsViT\ndef build(): return DigitsViT(dim=256, depth=6)"
BASE = {"width": 256, "layers": 4, "tokens": 256}
WORKERS = {"samples": 0, "samples, 1 worker": 1, "samples, 2 workers": 2}
FIRST_SIZES = {"width": 128, "layers": 2, "tokens": 128, "clients": 1, "candidates": 2}
FIRST_SIZES |= dict.fromkeys(WORKERS, 2000)
REQUESTS, RAY_PORT = 300, 6391
# Work grows in proportion at least, and at most by the square: weights in width, pairs of tokens.
GROWING = tuple(np.linspace(1, 2, 11).tolist())
# Samples and candidates take turns. The server fills up, and its clients wait in line.
POWERS = dict.fromkeys(("compare s", "compare CPU s", "compare MiB", "p95 ms"), (1.0,))
POWERS |= dict.fromkeys(("requests/s", "server cores"), (-1.0,))
Costs = Mapping[str, float]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", choices=FIRST_SIZES, default=[*FIRST_SIZES])
    options = parser.parse_args(arguments)
    print(f"{machine()}, load {load_average()}\n\n| size and cost | x1 | x2 | x4 | x8 ", end="")
    print("| predicted | error | power |\n|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        work = Work(Path(folder))
        for name in options.sizes:
            print(*grow(name, FIRST_SIZES[name], partial(work.costs, name)), sep="\n", flush=True)


def grow(name: str, first: int, cost_of: Callable[[int], Costs]) -> Iterator[str]:
    """Yield a row of Markdown for each cost; the largest size is predicted before it runs."""
    sizes = [first, 2 * first, 4 * first]
    measured = [cost_of(size) for size in sizes]
    fits = {cost: fit(sizes, [costs[cost] for costs in measured], cost) for cost in measured[0]}
    predicted = {cost: a + b * (8 * first) ** p for cost, (a, b, p) in fits.items()}
    print(f"predicted for {8 * first} {name}: {predicted}", file=sys.stderr, flush=True)
    measured.append(cost_of(8 * first))
    for cost, (*_, power) in fits.items():
        figures = [costs[cost] for costs in [*measured, predicted]]
        error = f"{figures[-1] / figures[-2] - 1:+.0%} | {power:.1f}"
        cells = [f"{figure:.3g}" if figure < 1000 else f"{figure:.0f}" for figure in figures]
        yield f"| {' | '.join([f'{name} from {first}: {cost}', *cells, error])} |"


def fit(sizes: Sequence[float], costs: Sequence[float], cost: str = "") -> tuple[float, ...]:
    """Return a, b, p of `a + b * size ** p` with the least squared error; least p at a tie."""

    def error_and_fit(p: float) -> tuple[float, ...]:
        terms = np.stack([np.ones(len(sizes)), np.asarray(sizes, float) ** p], axis=1)
        a, b = np.linalg.lstsq(terms, np.asarray(costs, float), rcond=None)[0]
        return round(float(np.square(terms @ [a, b] - costs).sum()), 9), p, float(a), float(b)

    _, p, a, b = min(map(error_and_fit, POWERS.get(cost, GROWING)))
    return a, b, p


class Work:
    """Makes models, samples and plans in a folder, and measures commands on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.classifier = cache(lambda: self._export(CLASSIFIER, "images:[batch=4,1,8,8]:float32"))

    def costs(self, name: str, size: int) -> Costs:
        """Measure the commands that a size of this name changes."""
        if name in BASE:
            return self._of_model(**{**BASE, name: size})
        if name == "clients":
            return self._served(size)
        samples, candidates = (1000, size) if name == "candidates" else (size, 2)
        return self._compared(samples, candidates, WORKERS.get(name, 0))

    def _of_model(self, width: int, layers: int, tokens: int) -> Costs:
        ids, mask = (f"{name}:[batch=2,seq={tokens}]" for name in ("token_ids", "mask"))
        inputs = f"{ids}:int64=0..255", f"{mask}:bool"
        package, cost = self._export(DECODER.format(width=width, layers=layers), *inputs)
        verified = measure([*PYTHON, "moh_deploy", "verify", str(package)])
        return {**_named("export", cost), **_named("verify", verified)}

    def _export(self, code: str, *inputs: str) -> tuple[Path, Cost]:
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        (folder / "grown.py").write_text(code)
        weights, package, dirs = str(folder / "w.pt"), folder / "package", [str(folder), *CODE_DIRS]
        measure([sys.executable, str(HERE / "write_checkpoint.py"), "grown:build", weights, *dirs])
        command = [*PYTHON, "moh_deploy", "export", weights, "--output", str(package)]
        command += ["--factory", "grown:build", *(f"--code-dir={path}" for path in dirs)]
        return package, measure([*command, *(f"--input={spec}" for spec in inputs)])

    def _served(self, clients: int) -> Costs:
        script, package = str(HERE / "serving_cpu.py"), str(self.classifier()[0])
        command = [sys.executable, script, "--package", package, "--threads=2", "--json"]
        command += [f"--clients={clients}", f"--requests={REQUESTS}"]
        row = json.loads(check_output(command, stderr=DEVNULL))[-1]
        rate, cores = row["per_second"], row["per_second"] * row["cpu_ms"] / 1000
        return {"requests/s": rate, "p95 ms": row["p95_ms"], "server cores": cores}

    def _compared(self, samples: int, candidates: int, workers: int) -> Costs:
        path = {"path": str(self.classifier()[0])}
        plan, rng = self.folder / "plan.json", np.random.default_rng(0)
        np.savez(self.folder / "x.npz", images=rng.random((samples, 1, 8, 8), np.float32))
        np.save(self.folder / "y.npy", rng.integers(0, 10, samples))
        content = {"goal": "growth", "inputs": ["x.npz"], "labels": "y.npy", "batch_size": 64}
        content |= {"reference": "p0", "arms": {f"p{index}": path for index in range(candidates)}}
        content |= {"threads": 1, "quality": {"metric": "top-1", "may_lose": 0.01}}
        plan.write_text(json.dumps(content))
        command = [*PYTHON, "moh_deploy", "compare", "--plan", str(plan)]
        with _ray(workers) if workers else nullcontext([]) as options:
            return _named("compare", measure([*command, *options]))


def _named(name: str, cost: Cost) -> Costs:
    return {f"{name} s": cost.wall_s, f"{name} CPU s": cost.cpu_s, f"{name} MiB": cost.sum_mib}


@contextmanager
def _ray(workers: int) -> Iterator[list[str]]:
    """Yield options of `compare` that use a Ray cluster on this machine."""
    command = [*PYTHON, "ray.scripts.scripts", "start", "--head", "--block", f"--port={RAY_PORT}"]
    command += [f"--num-cpus={workers}", "--node-ip-address=127.0.0.1", "--disable-usage-stats"]
    with Popen([*command, "--include-dashboard=false"], stdout=PIPE, text=True) as head:
        try:
            next(line for line in head.stdout or () if "Ray runtime started" in line)
            yield [f"--ray=127.0.0.1:{RAY_PORT}"]
        finally:
            head.terminate()


if __name__ == "__main__":
    main()
