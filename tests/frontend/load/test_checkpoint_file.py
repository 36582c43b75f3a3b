from __future__ import annotations

import copy
import errno
import importlib
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from torch import nn

from moh_deploy.errors import CheckpointError, ConfigError
from moh_deploy.frontend.load.checkpoint_file import build_module, load_weights, select_weights
from moh_deploy.system.user_code import user_code
from tests.frontend.checkpoints import Net, write_net
from tests.locked import lock


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(module.state_dict())


def assert_loaded(module: nn.Module, state: dict[str, torch.Tensor]) -> None:
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0)


@pytest.mark.parametrize("key", ["model", "state_dict", "net_g", "deep.er"])
def test_only_set_of_weights_is_found_beside_other_entries(key: str) -> None:
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = state_of(net)
    loaded = {"epoch": 3, key: state, "optimizer": optimizer.state_dict(), "rng": torch.ones(3)}
    assert select_weights(loaded, state_key=None, source="f") is state


STATE = state_of(Net())
MOMENTS = {"state": {"a": {"step": STATE}}, "param_groups": []}


@pytest.mark.parametrize(
    ("wrap", "key"),
    [
        (lambda state: state, None),
        (lambda state: {"a": {"b": state}}, None),
        (lambda state: {"net": state, "opt": MOMENTS}, None),  # of an optimizer: no weights
        (lambda state: {"model": STATE, "ema": state}, "ema"),
        (lambda state: {"model": STATE, "nested": {"model": state}}, "nested.model"),
        (lambda state: {"model": STATE, "dotted.key": state}, "dotted.key"),
        (lambda state: {"model": STATE, "dotted.key": {"deep": state}}, "dotted.key.deep"),
        (lambda state: {"net": {"ema": STATE}, "net.ema": state}, "net.ema"),  # the longest
    ],
)
def test_weights_are_told_from_others(wrap: Callable[..., object], key: str | None) -> None:
    state = state_of(Net())
    assert select_weights(wrap(state), state_key=key, source="f") is state


@pytest.mark.parametrize(
    ("loaded", "key", "message", "hint"),
    [
        ({}, None, "holds no weights.*got .*empty", ""),
        ({"a": 1}, None, "holds no weights.*got .*keys a", ""),
        (torch.ones(2), None, "holds no weights.*got .*Tensor", ""),
        (3, None, "holds no weights.*got .*int", ""),
        (
            {"model": STATE, "ema": {"shadow": STATE}},
            None,
            r"f: holds 2 sets of weights: model, ema\.shadow",
            "such as --state-key model.",
        ),
        (
            {"model_ema": STATE, "epoch": 3},
            "modelema",
            "there is no key 'modelema'",
            "Did you mean 'model_ema'? It has: model_ema, epoch.",
        ),
        (STATE, "model", "there is no key 'model'", "leave --state-key out"),
        ({"epoch": 3}, "epoch", r"'epoch' holds no weights.*got a int", ""),
        ({"epoch": 3}, "epoch.x", "cannot look up 'x' in a int", ""),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_place_without_weights_is_refused(loaded: object, key: str | None, message: str, hint: str):
    with pytest.raises(CheckpointError, match=message) as caught:
        select_weights(loaded, state_key=key, source="f")
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "module.",
        "_orig_mod.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "model.",
        "_fsdp_wrapped_module.",
        "model._orig_mod.",
    ],
)
def test_prefixes_of_wrappers_are_removed(prefix: str) -> None:
    state, net = state_of(Net()), Net()
    load_weights(net, {f"{prefix}{key}": value for key, value in state.items()}, source="f")
    assert_loaded(net, state)
    compiled = {key.replace("first.", "first._orig_mod."): v for key, v in state.items()}
    load_weights(net := Net(), compiled, source="f")
    assert_loaded(net, state)


def test_weights_of_an_averaged_model_are_loaded() -> None:
    average, net = torch.optim.swa_utils.AveragedModel(Net()), Net()
    load_weights(net, average.state_dict(), source="f")
    assert_loaded(net, state_of(average.module))


def beside_a_teacher(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a training module of several parts saves."""
    teacher = {f"teacher.{key}": torch.zeros_like(value) for key, value in state.items()}
    return {**{f"model.{key}": value for key, value in state.items()}, **teacher}


def test_parts_that_fit_are_named_where_there_are_several() -> None:
    with pytest.raises(CheckpointError, match="missing keys") as caught:
        load_weights(Net(), beside_a_teacher(state_of(Net())), source="f")
    hint = "Its part model or teacher has the missing keys: --state-key model takes it."
    assert caught.value.hint == hint


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"epoch": 1, "sd": state}])
def test_state_key_names_a_part_of_a_state_dict(wrap: Callable[..., object]) -> None:
    state, net = state_of(Net()), Net()
    stored = select_weights(wrap(beside_a_teacher(state)), state_key="model", source="f")
    load_weights(net, stored, source="f")
    assert_loaded(net, state)


def test_prefix_that_the_module_has_itself_is_kept() -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = Net()

    state, wrapper = state_of(Wrapper()), Wrapper()
    load_weights(wrapper, state, source="f")
    assert_loaded(wrapper, state)


def test_mismatch_is_refused_naming_keys_and_both_shapes() -> None:
    state = state_of(Net(width=6))
    del state["last.bias"]
    state["extra.weight"] = torch.ones(1)
    with pytest.raises(CheckpointError) as caught:
        load_weights(Net(width=4), state, source="f")
    message = caught.value.message
    assert "1 missing keys:\n    last.bias" in message
    assert "1 unexpected keys:\n    extra.weight" in message
    assert "3 keys of another shape" in message
    assert "first.weight: the model has [4, 3], the checkpoint [6, 3]" in message


def untied() -> Tied:
    module = Tied()
    module.head.weight = nn.Parameter(torch.zeros(5, 3))
    return module


@pytest.mark.parametrize(
    ("make", "state", "message"),
    [
        (Net, {k: v for k, v in STATE.items() if k != "last.bias"}, r"1 missing.*:\n    last.bias"),
        (
            lambda: nn.Sequential(*(nn.Linear(1, 1) for _ in range(20))),
            {"0.weight": torch.ones(1, 1)},
            r"(?s)39 missing keys.*\.\.\. and 29 more",
        ),
        (untied, {"embed.weight": torch.ones(5, 3)}, r"1 missing keys:\n    head\.weight"),
        (
            Net,
            {**{f"model.{k}": v for k, v in STATE.items()}, "logit_scale": torch.ones(())},
            r"1 unexpected keys:\n    logit_scale",
        ),
        (Net, {"logit_scale": torch.ones(())}, r"1 unexpected keys:\n    logit_scale"),
    ],
    ids=["one", "many", "not_tied", "beside_a_prefix", "no_prefix"],
)
def test_other_keys_are_refused(
    make: Callable[[], nn.Module], state: dict[str, torch.Tensor], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_weights(make(), state, source="f")


def test_tied_weight_that_was_stored_once_is_loaded() -> None:
    tied = Tied()
    value = torch.arange(15.0).reshape(5, 3)
    load_weights(tied, {"embed.weight": value}, source="f")
    torch.testing.assert_close(tied.head.weight.data, value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precision_of_the_checkpoint_is_kept(dtype: torch.dtype) -> None:
    state = {key: value.to(dtype) for key, value in state_of(Net()).items()}
    net = Net()
    load_weights(net, state, source="f")
    assert {parameter.dtype for parameter in net.parameters()} == {dtype}
    assert_loaded(net, state)


def test_mixed_precision_takes_the_precision_of_the_module() -> None:
    state = state_of(Net())
    state["first.weight"] = state["first.weight"].half()
    net = Net()
    load_weights(net, state, source="f")
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}


def test_whole_numbers_are_not_converted_with_the_precision() -> None:
    norm = nn.BatchNorm1d(2)
    state = OrderedDict(
        (k, v.half() if v.is_floating_point() else v) for k, v in state_of(norm).items()
    )
    load_weights(norm, state, source="f")
    assert norm.num_batches_tracked.dtype == torch.int64


def test_keys_that_the_module_renames_itself_are_accepted() -> None:
    class Renamed(Net):
        def _load_from_state_dict(self, state_dict, prefix, *args):  # type: ignore[no-untyped-def]
            state_dict[f"{prefix}first.bias"] = state_dict.pop(f"{prefix}old_bias")
            super()._load_from_state_dict(state_dict, prefix, *args)

    state, net = state_of(Net()), Renamed()
    load_weights(
        net, {k.replace("first.bias", "old_bias"): v for k, v in state.items()}, source="f"
    )
    assert_loaded(net, state)


def test_factory_is_imported_from_the_code_directory_and_called(code_dir: Path) -> None:
    module = build_module("user_net:build", {"width": 7}, code_dirs=[code_dir])
    assert module.first.out_features == 7


def test_what_user_code_prints_goes_to_stderr(code_dir: Path, capsys) -> None:
    build_module("user_net:build", {}, code_dirs=[code_dir])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "a factory module that prints" in captured.err
    assert "a factory that prints" in captured.err


def test_code_directory_stays_importable_afterwards(code_dir: Path) -> None:
    (code_dir / "user_late.py").write_text("VALUE = 5")
    build_module("user_net:build", {}, code_dirs=[code_dir])
    assert importlib.import_module("user_late").VALUE == 5


def test_each_model_gets_its_own_module_of_a_common_name(tmp_path: Path) -> None:
    for name, width in (("a", 5), ("b", 6)):
        source = f"from torch import nn\ndef build():\n    return nn.Linear({width}, 1)\n"
        (tmp_path / name).mkdir()
        (tmp_path / name / "user_models.py").write_text(source)
    widths = [
        build_module("user_models:build", {}, code_dirs=[tmp_path / name]).in_features
        for name in ("a", "b", "a")
    ]
    assert widths == [5, 6, 5]


def test_module_of_the_same_directory_is_imported_once(code_dir: Path) -> None:
    build_module("user_net:build", {}, code_dirs=[code_dir])
    first = sys.modules["user_net"]
    build_module("user_net:build", {}, code_dirs=[code_dir])
    assert sys.modules["user_net"] is first


def test_code_directory_cannot_replace_the_standard_library(tmp_path: Path) -> None:
    (tmp_path / "random.py").write_text("raise RuntimeError('shadowed')")
    import random

    with user_code([tmp_path]):
        assert sys.modules["random"] is random


def test_missing_code_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"code directory '.*absent' does not exist"):
        build_module("user_net:build", {}, code_dirs=[tmp_path / "absent"])


MALFORMED = "is malformed; expected MODULE:CALLABLE"


@pytest.mark.parametrize(
    ("factory", "kwargs", "message", "hint"),
    [
        *((name, {}, MALFORMED, "") for name in ("user_net", "user_net:", ":build", "a b:c")),
        ("user_net.py:build", {}, MALFORMED, ""),
        ("user_absent:build", {}, "no module 'user_absent'", "--code-dir (now: '"),
        (
            "user_net:biuld",
            {},
            "module 'user_net' has no attribute 'biuld'",
            "Did you mean 'build'? It defines: Net, Tied, build, build_tied",
        ),
        ("user_net:WIDTH", {}, "'user_net:WIDTH' is a int, not a callable", ""),
        (
            "user_net:Net",
            {"height": 3},
            r"called with height=3 raised TypeError: .*unexpected keyword argument 'height'",
            "Net(width=4)",
        ),
        ("user_net:fail", {"size": 3}, "raised ValueError: size 3 is odd", ""),
        ("user_net:leave", {}, "raised SystemExit: 4", ""),
        ("user_net:build_number", {}, r"returned a int; expected a torch\.nn\.Module", ""),
    ],
)
def test_wrong_factory_is_refused(
    code_dir: Path, factory: str, kwargs: dict[str, object], message: str, hint: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build_module(factory, kwargs, code_dirs=[code_dir])
    assert hint in (caught.value.hint or "")


def test_module_of_the_current_directory_is_pointed_at(code_dir: Path, monkeypatch) -> None:
    monkeypatch.chdir(code_dir)
    with pytest.raises(ConfigError, match="no module 'user_net'") as caught:
        build_module("user_net:build", {}, code_dirs=[])
    assert caught.value.hint == "'user_net' lies in '.': add --code-dir ."


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import absent_package.part", r"ModuleNotFoundError: .*'absent_package' \(user_broken"),
        ("x = ", "SyntaxError"),
        ("1 / 0", r"ZeroDivisionError: division by zero \(user_broken.py:1\)"),
        ("raise SystemExit(2)", "SystemExit: 2"),
    ],
)
def test_module_that_fails_at_import_is_refused(tmp_path: Path, source: str, message: str) -> None:
    (tmp_path / "user_broken.py").write_text(source)
    with pytest.raises(ConfigError, match=f"failed at import: {message}"):
        build_module("user_broken:build", {}, code_dirs=[tmp_path])


@pytest.mark.parametrize("source", ["import click.gone", "from click import gone"])
def test_code_for_another_version_of_an_installed_package_is_told_apart(
    tmp_path: Path, source: str
) -> None:
    (tmp_path / "user_old.py").write_text(source)
    with pytest.raises(ConfigError, match=r"failed at import: .*Error: ") as caught:
        build_module("user_old:build", {}, code_dirs=[tmp_path])
    installed = f"click {version('click')} is installed, and the code was written for another"
    assert str(caught.value.hint).startswith(installed)


def test_factory_in_a_package_is_found(tmp_path: Path) -> None:
    write_net(tmp_path / "user_package", "nets")
    (tmp_path / "user_package" / "__init__.py").touch()
    assert build_module("user_package.nets:Net", {}, code_dirs=[tmp_path]) is not None


def test_package_that_a_factory_imports_when_it_is_called_is_named(tmp_path: Path) -> None:
    (tmp_path / "user_lazy.py").write_text("def build():\n    import no_such_package\n")
    with pytest.raises(ConfigError, match="needs the package 'no_such_package'") as caught:
        build_module("user_lazy:build", {}, code_dirs=[tmp_path])
    assert "Install" in str(caught.value.hint)


def test_directory_that_may_not_be_entered_is_no_package(code_dir: Path, monkeypatch) -> None:
    (code_dir / "locked").mkdir()
    lock(code_dir / "locked", monkeypatch)
    assert build_module("user_net:build", {}, code_dirs=[code_dir]) is not None


def test_code_directory_that_cannot_be_listed_is_refused(code_dir: Path, monkeypatch) -> None:
    def listed(path: Path) -> Iterator[Path]:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", listed)
    message = f"code directory cannot be read: .*Permission denied: '{code_dir}'"
    with pytest.raises(ConfigError, match=message):
        build_module("user_net:build", {}, code_dirs=[code_dir])
