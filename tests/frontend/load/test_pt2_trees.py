from __future__ import annotations

import json
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from moh_deploy.frontend.fx.containers import output_names
from moh_deploy.frontend.inputs.program_inputs import inputs_from_program
from moh_deploy.frontend.load.model import LoadedModel
from moh_deploy.frontend.load.pt2 import load_program
from tests.frontend.load.test_pt2 import change_json
from tests.nightly import sampled

X = torch.arange(6.0).reshape(2, 3)


class Answer(dict):
    """Registered as Hugging Face registers its outputs."""


@dataclass
class Pair:
    left: Tensor
    right: Tensor
    nothing: Tensor | None = None


class Opaque:
    def __init__(self, *parts: Tensor) -> None:
        self.parts = parts


Named = namedtuple("Named", ["one", "two"])

pytree.register_pytree_node(
    Answer,
    lambda one: (list(one.values()), list(one)),
    lambda values, names: Answer(zip(names, values, strict=True)),
    serialized_type_name="here.Answer",
)
pytree.register_pytree_node(
    Opaque,
    lambda one: (list(one.parts), None),
    lambda values, _: Opaque(*values),
    serialized_type_name="here.Opaque",
)
pytree._register_namedtuple(Named, serialized_type_name="here.Named")
torch.export.register_dataclass(Pair, serialized_type_name="here.Pair")


class Returns(nn.Module):
    """Returns a container of a class."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor, y: Tensor | Pair) -> object:
        return self.make(x, y if isinstance(y, Tensor) else y.left + y.right)


def forget(value: Any) -> None:
    """Let the file name classes that are not known here, as in another process."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key in ("in_spec", "out_spec"):
                value[key] = item.replace("here.", "elsewhere.")
            else:
                forget(item)
    elif isinstance(value, list):
        for item in value:
            forget(item)


@sampled(2)
@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda a, b: Answer(logits=a, cache=(b, None)), ["logits", "cache.0"]),
        (Pair, ["left", "right"]),
        (Opaque, ["output_0", "output_1"]),
        (Named, ["output_0", "output_1"]),
        (lambda a, b: {"y": Pair(a, b)}, ["y.left", "y.right"]),
    ],
    ids=["keys", "dataclass", "nothing_named", "namedtuple", "nested"],
)
def test_program_is_read_without_the_classes_that_it_returns(
    tmp_path: Path, make: Any, names: list[str]
) -> None:
    program = torch.export.export(Returns(make), (X, X + 1))
    torch.export.save(program, tmp_path / "m.pt2")
    loaded = load_program(change_json(tmp_path / "m.pt2", forget), trust_pickle=False)
    assert output_names(loaded, ()) == names
    assert_tensors(loaded.module()(X, X + 2), X, X + 2)


def test_program_is_called_without_the_classes_that_it_takes(tmp_path: Path) -> None:
    program = torch.export.export(Returns(Pair), (X, Pair(X + 1, X + 2)))
    torch.export.save(program, tmp_path / "m.pt2")
    loaded = load_program(change_json(tmp_path / "m.pt2", forget), trust_pickle=False)
    model = LoadedModel(None, loaded, "pt2", None)
    inputs = inputs_from_program(loaded)
    assert [one.name for one in inputs] == ["x", "y.left", "y.right"]
    assert_tensors([one.value for one in inputs], X, X + 1, X + 2)
    assert_tensors(model.callable()(X, X + 1, X + 2), X, 2 * X + 3)


def assert_tensors(got: object, *expected: Tensor) -> None:
    tensors = [one for one in pytree.tree_leaves(got) if one is not None]
    torch.testing.assert_close(tensors, list(expected))


def test_known_classes_stay(tmp_path: Path) -> None:
    program = torch.export.export(Returns(Pair), (X, X))
    torch.export.save(program, tmp_path / "m.pt2")
    loaded = load_program(tmp_path / "m.pt2", trust_pickle=False)
    assert isinstance(loaded.module()(X, X), Pair)


def test_class_is_read_where_the_context_is_no_json_list(tmp_path: Path) -> None:
    def odd(document: Any) -> None:
        signature = document["graph_module"]["module_call_graph"][0]["signature"]
        spec = json.loads(signature["out_spec"])
        spec[1]["type"], spec[1]["context"] = "elsewhere.Odd", json.dumps({"a": 1})
        signature["out_spec"] = json.dumps(spec)

    program = torch.export.export(Returns(Pair), (X, X))
    torch.export.save(program, tmp_path / "m.pt2")
    path = change_json(tmp_path / "m.pt2", odd)
    assert output_names(load_program(path, trust_pickle=False), ()) == ["output_0", "output_1"]
