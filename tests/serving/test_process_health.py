from __future__ import annotations

from moh_deploy.serving.process_health import RunsUnderWay


def test_runs_that_last_too_long_are_counted_until_they_end():
    now = [0.0]
    runs = RunsUnderWay(2, hung_s=10.0, clock=lambda: now[0])
    runs.begins(0)
    now[0] = 9.0
    runs.begins(1)
    assert (runs.hung(), runs.are_all_hung) == (0, False)
    now[0] = 11.0
    assert (runs.hung(), runs.are_all_hung) == (1, False)
    (family,) = runs.families()
    assert (family.name, family.samples[0].value) == ("moh_hung_runs", 1)
    now[0] = 20.0
    assert (runs.hung(), runs.are_all_hung, runs.hung(2)) == (2, True, 0)
    now[0] = 20.5
    assert runs.hung(2) == 1
    # The next run of an instance is another one.
    runs.begins(0)
    runs.ends(1)
    assert (runs.hung(), runs.hung(2)) == (0, 0)
