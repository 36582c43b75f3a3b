"""What is asked of one model in one precision; apart from the command line, so that it can be sent
to other processes: they cannot import a `__main__`."""

import argparse
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from tests.validate.mutations.packages import Precision
from tests.validate.mutations.planting import FaultInjection, Planted
from tests.validate.mutations.subjects import SUBJECTS
from tests.validate.mutations.variations import (
    EXPORTED_ANEW,
    VARIATIONS,
    Subject,
    Varied,
    vary,
)
from tests.zoo import ZooModel


class Task(NamedTuple):
    """One model in one precision."""

    model: str
    precision: Precision


class Found(NamedTuple):
    """What came of a task."""

    planted: list[Planted]
    varied: list[Varied]
    skipped: dict[str, str]


def carry_out(task: Task, options: argparse.Namespace) -> Found:
    """Run what the command line asks for of one model in one precision."""
    warnings.simplefilter("ignore")  # ONNX's reference warns of NaN on the way of a blind query
    model = next(subject for subject in SUBJECTS if subject.name == task.model)
    with TemporaryDirectory() as scratch:
        return _found_in(Path(scratch, "package"), task, model, options)


def _found_in(scratch: Path, task: Task, model: ZooModel, options: argparse.Namespace) -> Found:
    planted, varied, skipped = [], [], {}
    if options.what != "honest":
        injection = FaultInjection(model, options.cache, scratch, by_size=options.by_size)
        middle = (len(injection.package.manifest.layers) - 1) // 2
        planted = list(
            injection.plant_all(
                task.precision,
                faults=options.faults,
                layers=lambda index: options.layers == "all" or index == middle,
            )
        )
        skipped = {f"{fault}/{index}": why for (fault, index), why in injection.skipped.items()}
    if options.what != "faults":
        subject = Subject(model, task.precision, options.cache, scratch)
        names = [
            variation
            for variation in VARIATIONS
            if options.opsets or variation not in EXPORTED_ANEW
        ]
        varied = list(vary(subject, names))
    return Found(planted, varied, skipped)
