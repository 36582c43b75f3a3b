from __future__ import annotations

import onnx

from moh_deploy.validate.bisection.checkpoint import Checkpoint
from moh_deploy.validate.bisection.locate import Interval, find_interval
from moh_deploy.validate.bisection.places import ModelGraph

GRAPH = """
g (float[n] x) => (float[n] gates_0, float[n] gates_1, float[n] y)
{ x0 = Neg(x)
  gates_0 = Exp(x0)
  x1 = Abs(x0)
  gates_1 = Exp(x1)
  x2 = Relu(x1)
  y = Exp(x2) }
"""


def graph() -> ModelGraph:
    return ModelGraph(onnx.parser.parse_graph(GRAPH))


def interval(**said: str) -> Interval:
    """Find it by what is said of each recorded value: wrong, weak, exact."""
    checkpoints = [
        Checkpoint(name, name, agrees=word != "wrong", exact=word == "exact")
        for name, word in said.items()
    ]
    found = find_interval(graph(), checkpoints)
    assert found is not None
    return found


def made(values: frozenset[int]) -> set[str]:
    return {graph().nodes[index].output[0] for index in values}


def test_it_lies_between_the_last_exact_value_and_the_first_wrong_one():
    found = interval(gates_0="exact", gates_1="wrong", y="wrong")
    assert [one.what for one in found.after] == ["gates_0"]
    assert found.before.what == "gates_1"
    assert made(found.nodes) == {"x1", "gates_1"}
    assert made(found.alone) == {"x1"}


def test_value_that_agrees_and_is_not_exact_proves_nothing():
    found = interval(gates_0="exact", gates_1="weak", y="wrong")
    assert made(found.nodes) == {"x1", "x2", "y"}
    found = interval(gates_0="weak", gates_1="weak", y="wrong")
    assert found.after == ()
    assert made(found.nodes) == {"x0", "x1", "x2", "y"}


def test_exact_value_behind_a_wrong_one_leaves_what_leads_to_that_alone():
    found = interval(gates_0="exact", gates_1="wrong", y="exact")
    assert made(found.nodes) == {"gates_1"}
    assert [one.what for one in found.after] == ["y"]


def test_of_two_faults_one_is_in_the_interval():
    """One node cannot make gates_0 and y wrong if gates_1 is right: no node is named for both."""
    found = interval(gates_0="wrong", gates_1="exact", y="wrong")
    assert made(found.nodes) == {"gates_0"}
    assert found.alone == frozenset()


def test_without_anything_wrong_there_is_none():
    checkpoints = [Checkpoint(name, name, agrees=True, exact=True) for name in ("gates_0", "y")]
    assert find_interval(graph(), checkpoints) is None


def test_wrong_value_whose_nodes_are_all_proven_right_disproves_the_proof():
    """x1 leads to y, which is right, and is itself recorded as wrong."""
    checkpoints = [Checkpoint("x1", "x1", agrees=False), Checkpoint("y", "y", True, exact=True)]
    found = find_interval(graph(), checkpoints)
    assert found is not None
    assert found.after == ()
    assert made(found.nodes) == {"x0", "x1"}
