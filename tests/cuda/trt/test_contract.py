"""Every contract case through a plugin: parsed, configured, shaped and run over the real kernels.

The kernels run in the emulator; what TensorRT would do is done by harness.cc.
"""

import numpy as np
import pytest

from moh_deploy.ops.cases import Case, find_mismatch
from tests.cuda.libraries import Emulator
from tests.cuda.trt import builds
from tests.cuda.trt.case_runs import CaseRun
from tests.cuda.trt.host_plugin import BUILD, RUNTIME, Harness, Plugin
from tests.cuda.trt.test_attributes import PLUGINS
from tests.nightly import in_turn, sampled
from tests.ops.batches import Batch, assert_nothing_wrong, batches_of
from tests.ops.cases import named_case


@pytest.fixture(scope="module")
def harness(emulator: Emulator) -> Harness:
    return Harness(builds.harness(), builds.plugin_on_emulated(emulator.path))


def _as_in_an_engine(harness: Harness, run: CaseRun, tactic: int) -> Plugin:
    """Build with one plugin, and run another one that is made of what an engine keeps."""
    built = harness.create(run.case.op, run.fields, phase=BUILD)
    assert built is not None, harness.log()
    assert built.configure(run.tensors), harness.log()
    plugin = harness.create(run.case.op, built.serialize(), phase=RUNTIME)
    assert plugin.set_tactic(tactic)
    return plugin


@sampled(5)
@pytest.mark.parametrize(("batch", "half"), in_turn(batches_of(PLUGINS), [0, 1]), ids=str)
def test_a_plugin_agrees_with_the_reference(harness: Harness, batch: Batch, half: int):
    def problem_of(case: Case) -> str | None:
        run = CaseRun(case)
        built = harness.create(case.op, run.fields)
        assert built.configure(run.tensors), harness.log()
        outputs = [
            run.run(_as_in_an_engine(harness, run, tactic)) for tactic in built.tactics() or [0]
        ]
        problems = (find_mismatch(case, [output]) for output in outputs)
        return next(filter(None, problems), None) or harness.log() or None

    assert_nothing_wrong(batch.cases[half::2], problem_of)


def _plain(op: str, name: str) -> CaseRun:
    case = named_case(op, name)
    return CaseRun(case)


def test_while_measured_other_gates_are_used_than_the_given_ones(harness: Harness):
    """TensorRT measures on memory of its own, where gates may be anything: here, all closed."""
    run = _plain("MoHAttention", "all_closed")
    measured = run.run(harness.create("MoHAttention", run.fields, phase=BUILD))
    assert 0.3 < np.mean(measured != 0) < 1
    attached = run.run(harness.create("MoHAttention", run.fields, phase=BUILD).attach())
    assert not attached.any()


def test_sizes_that_change_between_runs(harness: Harness):
    """One plugin, many shapes, as a dynamic batch has them."""
    runs = [_plain("MoHAttention", n) for n in ("plain_rank3", "bool_mask_rank4", "plain_rank3")]
    plugin = harness.create("MoHAttention", runs[0].fields, phase=RUNTIME)
    first, last = (run.run(plugin.clone()) for run in (runs[0], runs[2]))
    np.testing.assert_array_equal(first, last)
