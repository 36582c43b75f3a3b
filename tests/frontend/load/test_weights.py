from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch import nn

from moh_deploy.errors import CheckpointError
from moh_deploy.frontend.load.weights import load_weights, select_weights
from tests.frontend.checkpoints import Net


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


def test_state_dict_is_its_own_weights() -> None:
    state = state_of(Net())
    assert select_weights(state, state_key=None, source="f") is state


@pytest.mark.parametrize("key", ["model", "state_dict", "net_g", "deep.er"])
def test_only_set_of_weights_is_found_beside_other_entries(key: str) -> None:
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = state_of(net)
    loaded = {"epoch": 3, key: state, "optimizer": optimizer.state_dict(), "rng": torch.ones(3)}
    assert select_weights(loaded, state_key=None, source="f") is state


def test_nested_weights_are_found() -> None:
    state = state_of(Net())
    assert select_weights({"a": {"b": state}}, state_key=None, source="f") is state


def test_two_sets_of_weights_are_refused_listing_both() -> None:
    loaded = {"model": state_of(Net()), "ema": {"shadow": state_of(Net())}}
    with pytest.raises(CheckpointError, match=r"f: holds 2 sets of weights: model, ema\.shadow"):
        select_weights(loaded, state_key=None, source="f")


@pytest.mark.parametrize(
    ("loaded", "got"), [({}, "empty"), ({"a": 1}, "keys a"), (torch.ones(2), "Tensor"), (3, "int")]
)
def test_file_without_weights_is_refused_saying_what_it_holds(loaded: object, got: str) -> None:
    with pytest.raises(CheckpointError, match=f"holds no weights.*got .*{got}"):
        select_weights(loaded, state_key=None, source="f")


@pytest.mark.parametrize("key", ["ema", "nested.model", "dotted.key", "dotted.key.deep"])
def test_state_key_chooses(key: str) -> None:
    state = state_of(Net())
    loaded: dict[str, object] = {"model": state_of(Net()), "nested": {}, "ema": state_of(Net())}
    loaded["nested"] = {"model": state}
    loaded["ema"] = state
    loaded["dotted.key"] = state if key == "dotted.key" else {"deep": state}
    assert select_weights(loaded, state_key=key, source="f") is state


def test_wrong_state_key_is_refused_with_a_suggestion() -> None:
    loaded = {"model_ema": state_of(Net()), "epoch": 3}
    with pytest.raises(CheckpointError, match="there is no key 'modelema'") as caught:
        select_weights(loaded, state_key="modelema", source="f")
    assert "Did you mean 'model_ema'? It has: model_ema, epoch." in str(caught.value.hint)


def test_state_key_for_a_plain_state_dict_is_refused() -> None:
    with pytest.raises(CheckpointError, match="there is no key 'model'") as caught:
        select_weights(state_of(Net()), state_key="model", source="f")
    assert "leave --state-key out" in str(caught.value.hint)


def test_state_key_of_something_else_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"'epoch' holds no weights.*got a int"):
        select_weights({"epoch": 3}, state_key="epoch", source="f")
    with pytest.raises(CheckpointError, match="cannot look up 'x' in a int"):
        select_weights({"epoch": 3}, state_key="epoch.x", source="f")


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


def test_prefix_of_a_compiled_part_is_removed() -> None:
    state, net = state_of(Net()), Net()
    stored = {key.replace("first.", "first._orig_mod."): v for key, v in state.items()}
    load_weights(net, stored, source="f")
    assert_loaded(net, state)


def test_weights_of_an_averaged_model_are_loaded() -> None:
    average, net = torch.optim.swa_utils.AveragedModel(Net()), Net()
    load_weights(net, average.state_dict(), source="f")
    assert_loaded(net, state_of(average.module))


def beside_a_teacher(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a training module of several parts saves."""
    teacher = {f"teacher.{key}": torch.zeros_like(value) for key, value in state.items()}
    return {**{f"model.{key}": value for key, value in state.items()}, **teacher}


def test_key_beside_a_prefix_is_unexpected() -> None:
    state = {f"model.{key}": value for key, value in state_of(Net()).items()}
    with pytest.raises(CheckpointError, match=r"1 unexpected keys:\n    logit_scale"):
        load_weights(Net(), {**state, "logit_scale": torch.ones(())}, source="f")
    with pytest.raises(CheckpointError, match=r"1 unexpected keys:\n    logit_scale"):
        load_weights(Net(), {"logit_scale": torch.ones(())}, source="f")


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


def test_missing_key_alone_is_refused() -> None:
    state = state_of(Net())
    del state["last.bias"]
    with pytest.raises(CheckpointError, match=r"1 missing keys:\n    last.bias"):
        load_weights(Net(), state, source="f")


def test_long_lists_of_keys_are_shortened_but_counted() -> None:
    model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(20)))
    with pytest.raises(CheckpointError, match=r"(?s)39 missing keys.*\.\.\. and 29 more"):
        load_weights(model, {"0.weight": torch.ones(1, 1)}, source="f")


def test_tied_weight_that_was_stored_once_is_loaded() -> None:
    tied = Tied()
    value = torch.arange(15.0).reshape(5, 3)
    load_weights(tied, {"embed.weight": value}, source="f")
    torch.testing.assert_close(tied.head.weight.data, value)


def test_weight_that_is_not_tied_is_still_missing() -> None:
    untied = Tied()
    untied.head.weight = nn.Parameter(torch.zeros(5, 3))
    with pytest.raises(CheckpointError, match=r"1 missing keys:\n    head\.weight"):
        load_weights(untied, {"embed.weight": torch.ones(5, 3)}, source="f")


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


def test_moments_of_an_optimizer_are_not_taken_for_weights() -> None:
    state = state_of(Net())
    moments = {name: {"exp_avg": torch.ones(1), "step": torch.ones(())} for name in state}
    loaded = {"net": state, "opt": {"state": moments, "param_groups": [{"lr": 0.1}]}}
    assert select_weights(loaded, state_key=None, source="f") is state


def test_longest_entry_that_a_state_key_names_wins() -> None:
    state = state_of(Net())
    loaded = {"net": {"ema": state_of(Net())}, "net.ema": state}
    assert select_weights(loaded, state_key="net.ema", source="f") is state
