import io
import json
import zipfile
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from moh_deploy.errors import CheckpointError
from moh_deploy.frontend.fx.containers import output_names
from moh_deploy.frontend.inputs.program_inputs import inputs_from_program
from moh_deploy.frontend.load.model import LoadedModel
from moh_deploy.frontend.load.pt2 import load_program, require_inference_mode
from tests.frontend.checkpoints import Bomb, Net, bomb_bytes
from tests.nightly import nightly, sampled

X = torch.arange(6.0).reshape(2, 3)


class Shapes(nn.Module):
    """Has shape arithmetic, a guard, a constant and a tied buffer in its program."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x: torch.Tensor, past: torch.Tensor) -> torch.Tensor:
        joined = torch.cat([past, x], dim=1)
        halves = joined[:, : joined.shape[1] // 2] * self.scale + torch.tensor([1.0, 2.0])
        return halves.reshape(halves.shape[0], -1) * min(x.shape[0], 100)


def shapes_program() -> torch.export.ExportedProgram:
    batch, past = torch.export.Dim("batch", max=64), torch.export.Dim("past")
    example = (torch.ones(2, 3, 2), torch.ones(2, 5, 2))
    return torch.export.export(
        Shapes(), example, dynamic_shapes=({0: batch}, {0: batch, 1: 2 * past + 1})
    )


def save(program: torch.export.ExportedProgram, path: Path) -> Path:
    torch.export.save(program, path)
    return path


def repack(path: Path, change: Callable[[str, bytes], bytes], **added: bytes) -> Path:
    """Rewrite each record of an archive, and add others."""
    changed = path.with_name("changed.pt2")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(changed, "w") as new:
        folder = old.namelist()[0].partition("/")[0]
        for name in old.namelist():
            new.writestr(name, change(name.partition("/")[2], old.read(name)))
        for name, content in added.items():
            new.writestr(f"{folder}/{name}", content)
    return changed


def change_json(
    path: Path, change: Callable[[Any], None], record: str = "models/model.json"
) -> Path:
    def apply(name: str, content: bytes) -> bytes:
        if name != record:
            return content
        document = json.loads(content)
        change(document)
        return json.dumps(document).encode()

    return repack(path, apply)


@nightly
def test_ordinary_program_needs_no_trust(tmp_path: Path) -> None:
    program = shapes_program()
    loaded = load_program(save(program, tmp_path / "m.pt2"), trust_pickle=False)
    example = (torch.ones(3, 3, 2), torch.ones(3, 7, 2))
    torch.testing.assert_close(loaded.module()(*example), program.module()(*example))


class Rounded(nn.Module):
    """Sizes go through ceil and floating-point numbers: a range with a step that is one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[0] + torch.arange(x.shape[1] - 1, -1, -1.0)


def test_sizes_that_are_rounded_are_no_code(tmp_path: Path) -> None:
    shapes = ({1: torch.export.Dim("n")},)
    program = torch.export.export(
        Rounded(),
        (torch.ones(1, 5),),
        dynamic_shapes=shapes,
        prefer_deferred_runtime_asserts_over_guards=True,
    )
    path = save(program, tmp_path / "m.pt2")
    with zipfile.ZipFile(path) as archive:
        assert any(b"CeilToInt" in archive.read(name) for name in archive.namelist())
    loaded = load_program(path, trust_pickle=False)
    torch.testing.assert_close(loaded.module()(torch.ones(1, 3)), torch.tensor([3.0, 2, 1]))


def set_expression(text: str) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        for meta in document["graph_module"]["graph"]["tensor_values"].values():
            for size in meta["sizes"]:
                if "as_expr" in size:
                    size["as_expr"]["expr_str"] = text

    return change


def set_target(text: str) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        document["graph_module"]["graph"]["nodes"][0]["target"] = text

    return change


def set_guard(text: str) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        document["guards_code"] = [text]

    return change


def set_spec(document: Any) -> None:
    spec = document["graph_module"]["module_call_graph"][0]["signature"]
    spec["in_spec"] = spec["in_spec"].replace('"null"', '"{\\"__enum__\\": true}"')


MORE_THAN_ARITHMETIC = (
    "__import__('os').system('true')",
    "Symbol('s0').func('x')",
    "Symbol('__import__(1)')",
    "Eq('1', __import__('os'))",
    "Integer('__import__(1)')",
    "Float('__import__(1)')",
    "sympify('1')",
    "(lambda: 1)()",
    "[x for x in (1,)]",
    "f'{1}'",
    "s0.__class__",
    "exec",
    "1; 2",
)
NO_OPERATORS = (
    "torch.ops.load_library",
    "torch.hub.load",
    "torch.load",
    "torch.ops.aten.__class__.__base__",
    "_operator.methodcaller",
    "math.__loader__",
    "builtins.exec",
    "#extension:x",
)
NO_GUARDS = (
    "__import__('os')",
    "L['x'].size()[0] == exec('1')",
    "print(1)",
    "torch.load(1) == 1",
    "torch.sym_float.__globals__ == 1",
)


@sampled(5)
@pytest.mark.parametrize(
    ("change", "key", "text"),
    [
        *((set_expression, "expr_str", text) for text in MORE_THAN_ARITHMETIC),
        *((set_target, "target", text) for text in NO_OPERATORS),
        *((set_guard, "guards_code", text) for text in NO_GUARDS),
    ],
)
def test_text_that_would_be_evaluated_is_refused(
    tmp_path: Path, change: Callable[[str], Callable[[Any], None]], key: str, text: str
):
    path = change_json(save(shapes_program(), tmp_path / "m.pt2"), change(text))
    with pytest.raises(CheckpointError, match=f"run code when loaded: {key}"):
        load_program(path, trust_pickle=False)


@sampled(2)
@pytest.mark.parametrize(
    "guard",
    [
        "L['x'].size()[0] <= 64 and 2 * L['past'].size()[1] != 7",
        "math.ceil(torch.sym_float(1 - 2 * L['x'].size()[1]) / (-1.0)) >= 2",
    ],
)
def test_guard_on_sizes_is_accepted(tmp_path: Path, guard: str) -> None:
    path = change_json(save(shapes_program(), tmp_path / "m.pt2"), set_guard(guard))
    assert load_program(path, trust_pickle=False) is not None


def test_structure_that_imports_a_module_is_refused(tmp_path: Path) -> None:
    path = change_json(save(shapes_program(), tmp_path / "m.pt2"), set_spec)
    with pytest.raises(CheckpointError, match="run code when loaded: in_spec"):
        load_program(path, trust_pickle=False)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    def change(document: Any) -> None:
        document["config"]["scale"]["use_pickle"] = True

    path = save(shapes_program(), tmp_path / "m.pt2")
    path = change_json(path, change, "data/weights/model_weights_config.json")
    with pytest.raises(CheckpointError, match="run code when loaded: use_pickle"):
        load_program(path, trust_pickle=False)


@sampled(2)
@pytest.mark.parametrize(
    "record",
    ["data/weights/model.pt", "data/constants/opaque_obj_0", "data/aotinductor/model/a.so"],
)
def test_records_with_code_are_refused(tmp_path: Path, record: str) -> None:
    path = save(shapes_program(), tmp_path / "m.pt2")
    path = repack(path, lambda _, content: content, **{record: bomb_bytes(tmp_path / "executed")})
    with pytest.raises(CheckpointError, match=f"record '.*{record}'"):
        load_program(path, trust_pickle=False)


def test_example_inputs_with_code_are_refused_and_run_when_trusted(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    buffer = io.BytesIO()
    torch.save((Bomb(mark), {}), buffer)

    def change(name: str, content: bytes) -> bytes:
        return buffer.getvalue() if name == "data/sample_inputs/model.pt" else content

    path = repack(save(shapes_program(), tmp_path / "m.pt2"), change)
    with pytest.raises(CheckpointError, match="example inputs are pickled objects"):
        load_program(path, trust_pickle=False)
    assert load_program(path, trust_pickle=False, needs_example=False).example_inputs is None
    assert not mark.exists()
    load_program(path, trust_pickle=True)
    assert mark.exists()


def test_damaged_program_is_refused(tmp_path: Path) -> None:
    path = change_json(save(shapes_program(), tmp_path / "m.pt2"), lambda d: d.pop("graph_module"))
    with pytest.raises(CheckpointError, match=r"is not a program that torch .* can load"):
        load_program(path, trust_pickle=False)


def test_program_exported_in_training_mode_is_refused_naming_the_node() -> None:
    program = torch.export.export(Net().train(), (X,))
    with pytest.raises(CheckpointError, match=r"node 'dropout' is aten\.dropout\.default"):
        require_inference_mode(program, source="m.pt2")


def test_program_exported_in_eval_mode_is_accepted() -> None:
    program = torch.export.export(Net().eval(), (X,))
    assert any(node.target is torch.ops.aten.dropout.default for node in program.graph.nodes)
    require_inference_mode(program, source="m.pt2")


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
    lambda item: (list(item.values()), list(item)),
    lambda values, names: Answer(zip(names, values, strict=True)),
    serialized_type_name="here.Answer",
)
pytree.register_pytree_node(
    Opaque,
    lambda item: (list(item.parts), None),
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
    assert [item.name for item in inputs] == ["x", "y.left", "y.right"]
    assert_tensors([item.value for item in inputs], X, X + 1, X + 2)
    assert_tensors(model.callable()(X, X + 1, X + 2), X, 2 * X + 3)


def assert_tensors(got: object, *expected: Tensor) -> None:
    tensors = [leave for leave in pytree.tree_leaves(got) if leave is not None]
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
