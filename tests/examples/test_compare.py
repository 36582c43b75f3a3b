"""The decision of the digits as a user gets it, with a shorter training and shorter timing."""

import re
import shutil
import subprocess
from pathlib import Path

from moh_deploy.decision.plan import read_plan
from tests.examples.digits_demo import DIGITS
from tests.nightly import nightly


def test_plan_has_moh_beside_its_rivals():
    plan = read_plan(DIGITS / "plan.yaml").plan
    assert plan.reference == "dense"
    assert plan.arms["dense"].dense
    made = {
        name: alternative.made.ways
        for name, alternative in plan.arms.items()
        if alternative.made is not None
    }
    assert made == {
        "all-heads": ["top_k"],
        "fewer-heads": ["top_k"],
        "pruned": ["prune"],
        "float16": ["precision"],
    }
    pruned = plan.arms["pruned"].made
    # The seed is part of what was fixed before.
    assert f"seed {planned_seed()})" in plan.goal
    # Heads that are chosen on the images they are judged by would look better than they are.
    assert not set(pruned.prune.inputs) & set(plan.inputs)


def planned_seed() -> str:
    found = re.search(r"^PLANNED_SEED = (\d+)$", (DIGITS / "compare.py").read_text(), re.MULTILINE)
    return found[1]


@nightly
def test_one_command_decides_from_nothing(tmp_path: Path, warm_interpreter: Path):
    digits = tmp_path / "examples" / "digits"
    shutil.copytree(DIGITS, digits, ignore=shutil.ignore_patterns("__pycache__"))
    plan = digits / "plan.yaml"
    shorter = re.sub(r"^seconds: .*", "seconds: 0.5", plan.read_text(), flags=re.MULTILINE)
    plan.write_text(shorter)
    command = [str(warm_interpreter), str(digits / "compare.py"), "--epochs", "2", "--seed", "7"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    verdict = "win|loss|inconclusive|dense would do"
    for alternative in ("moh", "all-heads", "fewer-heads", "pruned", "float16"):
        assert re.search(rf"^│ {alternative} +│ ({verdict}) ", done.stdout, re.MULTILINE), (
            done.stdout
        )
    assert re.search(r"^│ dense +│ reference +│ ONNX model", done.stdout, re.MULTILINE)
    assert "Quality is of 360 samples" in done.stdout
    assert read_plan(plan).plan.digest in done.stdout
    assert (tmp_path / "build" / "digits" / "decision.html").stat().st_size > 10_000
