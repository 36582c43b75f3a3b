"""The example of a guard's policy can be used, also with what is commented out in it."""

import json
import re
from pathlib import Path

from moh_deploy.serving.guard.policy import GuardPolicy, read_guard_policy

POLICY = Path(__file__).parents[2] / "examples" / "serving" / "policy.yaml"


def test_what_the_example_does_not_choose_is_usual():
    policy, usual = read_guard_policy(POLICY), GuardPolicy()
    for section in ("faults", "latency", "cool_down", "probes", "drift"):
        assert getattr(policy, section) == getattr(usual, section)
    assert [rung.kind for rung in policy.rungs] == [rung.kind for rung in usual.rungs]
    assert policy.rungs[0].p99_ms == 50


def test_what_is_commented_out_can_be_used(tmp_path: Path):
    # Keys, and not sentences: a line of YAML after `# `.
    text = re.sub(r"(?m)^# ((- | {2})\w+: |drift: )", r"\1", POLICY.read_text())
    (tmp_path / "policy.yaml").write_text(text)
    metric = {"metric": "top-1", "better": "higher", "reference": 0.975, "package": 0.971}
    content = {"equal": False, "accuracy": [metric], "comparisons": []}
    (tmp_path / "loss.json").write_text(json.dumps(content))
    policy = read_guard_policy(tmp_path / "policy.yaml")
    assert policy.rungs[2].called == "dense-model"
    assert policy.drift is not None
