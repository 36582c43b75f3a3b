"""Plans that are wrong, and what is said of them."""

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from moh_deploy.decision.plan import NEW_PLAN, Plan, plan_of, read_plan
from moh_deploy.errors import ConfigError

PLAN: dict[str, Any] = {
    "goal": "Serve faster",
    "reference": "dense",
    "arms": {
        "dense": {"path": "build/dense", "dense": True},
        "moh": {"path": "build/moh"},
        "open": {"made": {"all_heads_open": True}, "of": "moh"},
    },
    "inputs": ["x.npz"],
    "labels": "labels.npy",
    "quality": {"metric": "top-1", "may_lose": 0.005},
    "latency": {"at_least": 0.1},
    "sizes": [{"batch": 1}],
}


def plan_with(path: str, value: object) -> Plan:
    """Return the plan with one value set, at a dotted path; None leaves a key out."""
    document: Any = deepcopy(PLAN)
    *keys, last = path.split(".")
    section = document
    for key in keys:
        section = section[int(key) if isinstance(section, list) else key]
    if value is None:
        del section[last]
    else:
        section[last] = value
    return plan_of(document, "plan.yaml")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("refrence", "moh", "refrence is not a known key. Did you mean 'reference'?"),
        ("quality.may_loose", 0.1, "may_loose is not a known key. Did you mean 'may_lose'?"),
        ("arms.moh.pth", "x", "arms.moh.pth is not a known key. Did you mean 'path'?"),
        ("arms.open.made.topk", 4, "made.topk is not a known key. Did you mean 'top_k'?"),
        ("goal", None, "goal is missing"),
        (
            "reference",
            "dens",
            "reference is 'dens', which is no alternative. Did you mean 'dense'?",
        ),
        (
            "arms.open.of",
            "mho",
            "arms.open.of is 'mho', which is no alternative. Did you mean 'moh'?",
        ),
        ("arms.open.of", "open", "of is 'open', which is no package: nothing can be made of it."),
        ("arms.moh.url", "http://h:1", "expected one of path, checkpoint, url and made, got path"),
        ("arms.moh", {}, "arms.moh: expected one of path, checkpoint, url and made, got none."),
        ("arms.moh", {"url": "http://h:1"}, "arms.moh.model is missing"),
        (
            "arms.moh",
            {"url": "http://h:1", "model": "m", "runtime": "openvino"},
            "arms.moh.runtime is given, but it is for packages and ONNX files.",
        ),
        ("arms.moh.model", "m", "arms.moh.model is given, but no url of a server."),
        ("arms.moh.of", "dense", "arms.moh.of is given, but nothing is made of it"),
        ("arms.open.made", {}, "arms.open.made: expected one of all_heads_open, top_k"),
        ("arms.open.made.top_k", 4, "arms.open.made: expected one of"),
        ("arms.open.made.top_k", 0, "greater than or equal to 1"),
        ("quality.may_lose", -0.1, "may_lose is -0.1: "),
        ("quality.may_lose", "0.1", "may_lose is '0.1': "),
        ("latency.at_least", 1.5, "latency.at_least is 1.5: "),
        ("latency.quantile", 1.0, "latency.quantile is 1.0: "),
        ("labels", None, "quality is given, but no inputs and labels"),
        ("quality", None, "inputs or labels are given, but no quality that they are for."),
        ("latency", None, "sizes are given, but no latency that is compared at them."),
        ("sizes", [{"batch": 1}, {"batch": 1}], "sizes.1 is there twice."),
        ("quality", [PLAN["quality"], PLAN["quality"]], "quality names metric 'top-1' twice."),
        ("quality.may_lose", 1, "quality.may_lose is 1, which is all of top-1: expected a share"),
        ("quality.may_lose", "1e-3", "text unless it has a point and a sign, as in 1.0e-3."),
        (
            "arms.dense",
            {"made": {"fixed_routing": True}, "of": "moh"},
            "reference is 'dense', which is made by fixed_routing: a bound, and no model",
        ),
        ("looks", 0, "looks is 0: "),
        ("confidence", 1.0, "confidence is 1.0: "),
        ("seconds", 0.01, "seconds is 0.01: too short to time anything"),
        ("arms", {"dense": {"path": "x"}}, "arms has 1, expected a reference and at least one"),
    ],
)
def test_plan_that_is_wrong_says_where_and_what_is_expected(path: str, value: object, message: str):
    with pytest.raises(ConfigError) as error:
        plan_with(path, value)
    assert message in str(error.value)
    assert str(error.value).startswith("plan.yaml: ")


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(ConfigError) as error:
        plan_of({**PLAN, "reference": "x", "labels": None, "looks": 1}, "plan.yaml")
    assert len(str(error.value).splitlines()) == 2


def test_plan_without_quality_and_latency_decides_nothing():
    document = {item: PLAN[item] for item in ("goal", "reference", "arms")}
    with pytest.raises(ConfigError, match="there is nothing to decide by"):
        plan_of(document, "plan.yaml")


def test_several_metrics_are_a_list_and_one_stands_alone():
    assert plan_with("goal", "x").quality == plan_with("quality", [PLAN["quality"]]).quality


def test_digest_depends_on_margins_and_alternatives_and_not_on_their_order_in_the_file():
    whole = plan_of(PLAN, "p")
    assert whole.digest == plan_of(dict(reversed(PLAN.items())), "p").digest
    for path, value in (("quality.may_lose", 0.006), ("arms.moh.path", "other"), ("looks", 2)):
        assert plan_with(path, value).digest != whole.digest
    assert plan_with("seconds", 60.0).digest == whole.digest


def test_reference_is_what_made_alternatives_are_made_of_unless_they_say():
    assert plan_with("arms.open.of", None).base == "dense"
    assert plan_with("reference", "moh").base == "moh"


def test_file_that_is_no_mapping_is_refused(tmp_path: Path):
    path = tmp_path / "plan.yaml"
    path.write_text("- a list")
    with pytest.raises(ConfigError, match="expected a mapping with goal, reference, arms"):
        read_plan(path)


def test_plan_to_fill_in_says_all_of_it_that_a_comment_offers():
    document = yaml.safe_load(re.sub(r"(?m)^  # ", "  ", NEW_PLAN))
    found = plan_of(document, "plan.yaml")
    assert {"fewer-heads", "pruned", "int8", "original", "served"} <= set(found.arms)
