"""Compare what clients got from a server with what the package computes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from moh_deploy.runtime.base import Runner
from moh_deploy.system.npz import Array
from moh_deploy.validate.compare.tolerances import tolerance_for

IntArray: TypeAlias = NDArray[np.int64]
FloatArray: TypeAlias = NDArray[np.float64]

_BATCH = re.compile(r"batch of requests: ([^\"\n]*)")


@dataclass(frozen=True)
class Answers:
    """Every answer that clients got.

    Attributes:
        ids: Of the requests.
        first: The first sample of each request.
        count: How many samples from there on.
        ms: How long each took.
        outputs: Name to the rows of all answers, one behind the other.
    """

    ids: tuple[str, ...]
    first: IntArray
    count: IntArray
    ms: FloatArray
    outputs: Mapping[str, Array]

    @classmethod
    def read(cls, path: Path) -> Answers:
        """Read what `client.py` wrote."""
        with np.load(path) as file:
            outputs = {
                name.removeprefix("output/"): file[name]
                for name in file.files
                if name.startswith("output/")
            }
            ids = tuple(str(number) for number in file["id"])
            return cls(ids, file["first"], file["count"], file["ms"], outputs)


@dataclass(frozen=True)
class Comparison:
    """The comparison of all answers.

    Attributes:
        requests: How many there were.
        samples: How many samples were in them.
        batches: How many batches the server made of them.
        largest_batch: The most requests in one.
        unequal: Answers that are not bit for bit what the package computes for the batch that they
            were in.
        beyond: Answers that differ from what it computes for the request alone by more than
            rounding may.
        missing: Requests that the server's log has in no batch, or in several.
    """

    requests: int
    samples: int
    batches: int
    largest_batch: int
    unequal: int
    beyond: int
    missing: int

    @property
    def is_good(self) -> bool:
        return not (self.unequal or self.beyond or self.missing)

    def text(self) -> str:
        return (
            f"{self.requests} requests with {self.samples} samples, in {self.batches} batches of up"
            f" to {self.largest_batch} requests: {self.unequal} answers differ from the package run"
            f" on their batch, {self.beyond} from the request run alone by more than rounding,"
            f" {self.missing} are in no batch or in several"
        )


def compare_answers(
    answers: Answers, samples: Mapping[str, Array], runner: Runner, log: Path
) -> Comparison:
    """Run the package on each batch that the server formed, and on each request alone.

    Args:
        samples: What the clients sent samples of.
        runner: The package, with as many threads as an instance of the server has.
        log: Of the server, with `log_batches` switched on: which requests made up each batch.
    """
    places = {name: index for index, name in enumerate(answers.ids)}
    groups = [line.split() for line in _BATCH.findall(log.read_text(errors="replace"))]
    # Warm-up has no ids, and what others asked has other ones.
    ours = [group for group in groups if group and set(group) <= places.keys()]
    batches = [[places[name] for name in group] for group in ours]
    seen = np.bincount([index for batch in batches for index in batch], minlength=len(places))
    ends = np.cumsum(answers.count)
    unequal = 0
    for batch in batches:
        results = runner.run(_inputs(answers, batch, samples))
        at = 0
        for index in batch:
            count = int(answers.count[index])
            got = slice(int(ends[index]) - count, int(ends[index]))
            unequal += any(
                not _is_same(answers.outputs[name][got], result[at : at + count])
                for name, result in results.items()
            )
            at += count
    return Comparison(
        requests=len(places),
        samples=int(answers.count.sum()),
        batches=len(batches),
        largest_batch=max(map(len, batches), default=0),
        unequal=unequal,
        beyond=_beyond(answers, samples, runner, ends),
        missing=int((seen != 1).sum()),
    )


def _beyond(answers: Answers, samples: Mapping[str, Array], runner: Runner, ends: IntArray) -> int:
    rule, beyond = tolerance_for("float32"), 0
    alone: dict[tuple[int, int], dict[str, Array]] = {}
    for index in range(len(answers.ids)):
        first, count = int(answers.first[index]), int(answers.count[index])
        if (first, count) not in alone:
            alone[first, count] = runner.run(_inputs(answers, [index], samples))
        got = slice(int(ends[index]) - count, int(ends[index]))
        for name, expected in alone[first, count].items():
            error = np.abs(np.subtract(answers.outputs[name][got], expected)).max()
            # NaN is beyond any limit.
            if not error <= rule.limit(float(np.abs(expected).max())):
                beyond += 1
                break
    return beyond


def _inputs(answers: Answers, batch: list[int], samples: Mapping[str, Array]) -> dict[str, Array]:
    parts = [
        slice(int(answers.first[index]), int(answers.first[index] + answers.count[index]))
        for index in batch
    ]
    return {
        name: np.concatenate([array[part] for part in parts]) for name, array in samples.items()
    }


def _is_same(got: Array, expected: Array) -> bool:
    return got.dtype == expected.dtype and got.tobytes() == expected.tobytes()
