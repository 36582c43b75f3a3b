from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np

from moh_deploy.runtime.base import RecordingRunner, Variant
from moh_deploy.runtime.open_runner import open_runner
from tests.handmade_package import vectors, write_package


def test_runs_are_those_of_the_runner_and_what_is_kept_of_them_is_recorded(tmp_path: Path):
    package = write_package(tmp_path / "package")
    variant = Variant(kernels="off", extra_outputs=("gates_0",))
    steps: list[int] = []

    def step(number: int) -> nullcontext[None]:
        steps.append(number)
        return nullcontext()

    with open_runner(package, variant) as runner:
        recording = RecordingRunner(runner, frozenset({"gates_0"}), step)
        assert (recording.inputs, recording.outputs) == (runner.inputs, ("y", "gates_0"))
        assert recording.describe() == runner.describe()
        found = [recording.run(vectors(seed=seed).inputs) for seed in range(2)]
    assert steps == [0, 1]
    assert [list(one) for one in recording.results] == [["gates_0"], ["gates_0"]]
    for one, kept in zip(found, recording.results, strict=True):
        assert set(one) == {"y", "gates_0"}
        np.testing.assert_array_equal(one["gates_0"], kept["gates_0"])
