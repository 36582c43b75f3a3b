import argparse
import collections
import datetime
import hashlib
import json
import pathlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from moh_deploy.config.export_config import ExportConfig, ModelSection
from moh_deploy.errors import CheckpointError, ConfigError
from moh_deploy.frontend.inputs.example_inputs import example_inputs
from moh_deploy.frontend.load.checkpoint_file import build_module
from moh_deploy.frontend.load.load import in_eval_mode, load
from moh_deploy.frontend.load.model import LoadedModel
from tests.frontend.checkpoints import Bomb, Net, write_net
from tests.frontend.traced import plain_trace


def test_module_in_memory_is_copied_and_stays_as_it_is():
    module = Net().train()
    loaded = load(module, ModelSection())
    assert loaded.form == "in_memory"
    assert loaded.module is not module
    assert not any(part.training for part in loaded.module.modules())
    assert all(part.training for part in module.modules())
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert not any(parameter.requires_grad for parameter in loaded.module.parameters())


class KeepsItsLoss(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.loss = super().forward(x).square().mean()
        return super().forward(x)


def test_module_that_cannot_be_copied_says_how_it_can_be():
    module = KeepsItsLoss()
    module(torch.ones(2, 3))
    with pytest.raises(CheckpointError, match="the model cannot be copied: RuntimeError") as caught:
        load(module, ModelSection())
    assert "torch.no_grad()" in caught.value.hint
    with torch.no_grad():
        module(torch.ones(2, 3))
    assert load(module, ModelSection()).module is not None


def test_program_in_memory_is_used_as_it_is():
    program = plain_trace(Net(), torch.zeros(2, 3))
    loaded = load(program, ModelSection())
    assert loaded.program is program
    assert loaded.module is None
    _, (x,) = example_inputs(loaded, ExportConfig())
    assert (x.name, tuple(x.value.shape)) == ("x", (2, 3))


def test_anything_else_is_refused():
    with pytest.raises(ConfigError, match=r"is a function; expected a path, a torch\.nn\.Module"):
        load(lambda x: x, ModelSection())


X = torch.arange(6.0).reshape(2, 3)


class Pair(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x.sum(0) + y.sum(0)


def read(path: Path, *, trust_pickle: bool = False, **section: Any) -> LoadedModel:
    config = ModelSection(**section)
    return load(path, config, trust_pickle=trust_pickle, needs_example=True)


def user_net(code_dir: Path) -> nn.Module:
    return build_module("user_net:Net", {}, code_dirs=[code_dir])


def assert_same_outputs(loaded: LoadedModel, original: nn.Module) -> None:
    torch.testing.assert_close(loaded.module(X), original.eval()(X), rtol=0, atol=0)


@pytest.mark.parametrize("zipped", [True, False])
def test_state_dict_is_loaded_into_the_factory_module(
    tmp_path: Path, code_dir: Path, zipped: bool
) -> None:
    net, path = Net(), tmp_path / "model.bin"
    torch.save(net.state_dict(), path, _use_new_zipfile_serialization=zipped)
    loaded = read(path, factory="user_net:build", code_dirs=[code_dir])
    assert loaded.form == "state_dict"
    assert loaded.checkpoint_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert_same_outputs(loaded, net)


@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: {"epoch": 1, "model": net}])
def test_module_is_loaded_when_trusted_for_evaluation(
    tmp_path: Path, code_dir: Path, wrap: Callable[[nn.Module], object]
) -> None:
    net = user_net(code_dir).train()
    torch.save(wrap(net), tmp_path / "model.pt")
    loaded = read(tmp_path / "model.pt", trust_pickle=True, code_dirs=[code_dir])
    assert loaded.form == "module"
    assert not any(part.training for part in loaded.module.modules())
    assert not any(parameter.requires_grad for parameter in loaded.module.parameters())
    assert_same_outputs(loaded, net)


def test_training_checkpoint_with_plain_data_needs_no_trust(tmp_path: Path, code_dir: Path) -> None:
    net = Net()
    extras = {
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("a"), betas=(0.9, 0.99)),
        "optimizer": torch.optim.AdamW(net.parameters()).state_dict(),
        "best": np.float64(0.5),
        "history": np.ones((2, 2)),
        "seen": {frozenset({1}), (2, "a")},
        "when": datetime.datetime(2024, 1, 2),
        "took": datetime.timedelta(seconds=3),
    }
    state = {f"module.{key}": value for key, value in net.state_dict().items()}
    torch.save({**extras, "net": state}, tmp_path / "epoch3.pth")
    loaded = read(tmp_path / "epoch3.pth", factory="user_net:build", code_dirs=[code_dir])
    assert loaded.form == "checkpoint"
    assert_same_outputs(loaded, net)


def test_safetensors_are_loaded_and_tied_weights_tied(tmp_path: Path, code_dir: Path) -> None:
    weight = torch.arange(15.0).reshape(5, 3)
    save_file({"embed.weight": weight}, tmp_path / "model.anything")
    loaded = read(tmp_path / "model.anything", factory="user_net:build_tied", code_dirs=[code_dir])
    assert loaded.form == "safetensors"
    ids = torch.tensor([[0, 4]])
    torch.testing.assert_close(loaded.module(ids), weight[ids] @ weight.T)


def test_sharded_safetensors_are_loaded_by_their_index(tmp_path: Path, code_dir: Path) -> None:
    net = Net()
    state = net.state_dict()
    shard_of = {key: f"part-{int('last' in key)}.safetensors" for key in state}
    for shard in set(shard_of.values()):
        save_file({k: v for k, v in state.items() if shard_of[k] == shard}, tmp_path / shard)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": shard_of}))
    loaded = read(index, factory="user_net:build", code_dirs=[code_dir])
    assert loaded.form == "safetensors"
    assert_same_outputs(loaded, net)
    before = loaded.checkpoint_sha256
    save_file(
        {"last.weight": torch.zeros(2, 4), "last.bias": torch.zeros(2)},
        tmp_path / "part-1.safetensors",
    )
    assert read(index, factory="user_net:build", code_dirs=[code_dir]).checkpoint_sha256 != before


NO_INDEX = "is not an index of safetensors shards"
NO_NAME = r"expected a plain file name|surrogates not allowed"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, NO_INDEX),
        ({"weight_map": 3}, NO_INDEX),
        ({"weight_map": {"a": 3}}, NO_INDEX),
        ({"weight_map": {"a": "../../absent.safetensors"}}, r"absent\.safetensors: no such file"),
        ({"weight_map": {"a": "\ud800"}}, NO_NAME),
        ({"weight_map": {"a": "x" * 300}}, NO_NAME),
        ({"weight_map": {"a": ".."}}, NO_NAME),
    ],
    ids=["empty", "number", "number as a name", "missing", "no text", "long", "parent"],
)
def test_wrong_index_of_shards_is_refused(tmp_path: Path, content: object, message: str) -> None:
    (tmp_path / "model.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path / "model.json", factory="user_net:build")


def test_damaged_safetensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match="is a damaged safetensors file"):
        read(path, factory="user_net:build")


def test_program_is_loaded(tmp_path: Path) -> None:
    program = torch.export.export(Net().eval(), (X,))
    torch.export.save(program, tmp_path / "model.pt2")
    (tmp_path / "model.pt2").rename(tmp_path / "model.bin")
    loaded = read(tmp_path / "model.bin")
    assert (loaded.form, loaded.module) == ("pt2", None)
    torch.testing.assert_close(loaded.program.module()(X), program.module()(X))


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch's own
def test_program_whose_sizes_follow_from_others_is_decomposed(tmp_path: Path) -> None:
    batch = torch.export.Dim("batch")
    net, shapes = Pair(), ({0: batch}, {0: 2 * batch + 1})
    program = torch.export.export(net, (X, torch.ones(5, 3)), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = read(tmp_path / "model.pt2").program
    decomposed = loaded.run_decompositions()  # as torch.onnx does
    longer = torch.ones(3, 3), torch.ones(7, 3)
    torch.testing.assert_close(decomposed.module()(*longer), net(*longer))


def test_part_that_keeps_itself_in_train_mode_is_in_eval_mode(tmp_path: Path) -> None:
    (tmp_path / "user_stubborn.py").write_text(
        "from torch import nn\n"
        "class Stubborn(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.inner = nn.Linear(1, 1)\n"
        "    def train(self, mode=True):\n"
        "        return self\n"
    )
    state = {"inner.weight": torch.ones(1, 1), "inner.bias": torch.ones(1)}
    torch.save(state, tmp_path / "model.pt")
    loaded = read(tmp_path / "model.pt", factory="user_stubborn:Stubborn", code_dirs=[tmp_path])
    assert not any(part.training for part in loaded.module.modules())


def test_wrapper_of_data_parallel_is_removed(tmp_path: Path, code_dir: Path) -> None:
    torch.save(nn.DataParallel(user_net(code_dir)), tmp_path / "model.pt")
    loaded = read(tmp_path / "model.pt", trust_pickle=True, code_dirs=[code_dir])
    assert type(loaded.module).__name__ == "Net"


@pytest.mark.parametrize("zipped", [True, False])
def test_container_that_plain_reading_cannot_fill_needs_trust(
    tmp_path: Path, code_dir: Path, zipped: bool
) -> None:
    path = tmp_path / "m.pt"
    loaded = {"model": Net().state_dict(), "log": collections.defaultdict(list, a=[1])}
    torch.save(loaded, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"run code when loaded: collections\.defaultdict"):
        read(path, factory="user_net:build", code_dirs=[code_dir])
    trusted = read(path, factory="user_net:build", code_dirs=[code_dir], trust_pickle=True)
    assert trusted.form == "checkpoint"


def test_nothing_of_an_untrusted_file_is_executed(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    for zipped in (True, False):
        torch.save({"model": Bomb(mark)}, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
        with pytest.raises(CheckpointError, match="run code when loaded") as caught:
            read(tmp_path / "m.pt", factory="user_net:build")
        assert "--trust-pickle" in str(caught.value.hint)
        assert not mark.exists()
    with pytest.raises(CheckpointError, match="holds no weights"):
        read(tmp_path / "m.pt", factory="user_net:build", trust_pickle=True)
    assert mark.exists()


def test_untrusted_module_is_refused_naming_its_classes(tmp_path: Path, code_dir: Path) -> None:
    torch.save(user_net(code_dir), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"torch\.nn\.modules\.linear\.Linear, user_net\.Net"):
        read(tmp_path / "model.pt")


@pytest.mark.parametrize("beside_its_code", [True, False])
def test_class_that_cannot_be_imported_is_refused_naming_its_module(
    tmp_path: Path, code_dir: Path, beside_its_code: bool
) -> None:
    path = (code_dir if beside_its_code else tmp_path) / "model.pt"
    torch.save(user_net(code_dir), path)
    sys.path.remove(str(code_dir))
    del sys.modules["user_net"]
    with pytest.raises(CheckpointError, match="module 'user_net', which cannot be") as caught:
        read(path, trust_pickle=True)
    found = f"'user_net' lies in '{code_dir}': add --code-dir {code_dir}"
    assert "--code-dir" in caught.value.hint
    assert (caught.value.hint == found) == beside_its_code


def test_class_that_its_module_lost_is_refused_naming_it(tmp_path: Path, code_dir: Path) -> None:
    torch.save(user_net(code_dir), tmp_path / "model.pt")
    other = tmp_path / "other"
    write_net(other)
    (other / "user_net.py").write_text("")
    with pytest.raises(CheckpointError, match="class 'Net', which its module no longer has"):
        read(tmp_path / "model.pt", trust_pickle=True, code_dirs=[other])


def test_class_of_a_script_is_refused_saying_what_to_do(
    tmp_path: Path, code_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = user_net(code_dir)
    net_class = type(net)
    net_class.__module__ = "__main__"
    monkeypatch.setattr(sys.modules["__main__"], "Net", net_class, raising=False)
    torch.save(net, tmp_path / "model.pt")
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="class 'Net' of the script that saved it") as caught:
        read(tmp_path / "model.pt", trust_pickle=True)
    assert "--factory" in str(caught.value.hint)


def test_state_dict_without_factory_is_refused_listing_its_keys(tmp_path: Path) -> None:
    torch.save(Net().state_dict(), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"keys first\.weight, first\.bias, last") as caught:
        read(tmp_path / "model.pt")
    assert "--factory" in str(caught.value.hint)


def test_damaged_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    torch.save(Net().state_dict(), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:200])
    for trust in (False, True):
        with pytest.raises(CheckpointError, match="is truncated or damaged"):
            read(path, factory="user_net:build", trust_pickle=trust)


def test_options_that_a_form_does_not_use_are_refused(tmp_path: Path, code_dir: Path) -> None:
    torch.save(user_net(code_dir), tmp_path / "module.pt")
    torch.export.save(torch.export.export(Net().eval(), (X,)), tmp_path / "model.pt2")
    with pytest.raises(ConfigError, match="is a whole module, for which --factory 'a:b'"):
        read(tmp_path / "module.pt", trust_pickle=True, factory="a:b", code_dirs=[code_dir])
    with pytest.raises(ConfigError, match=r"is a torch\.export program, for which --state-key 'k'"):
        read(tmp_path / "model.pt2", state_key="k")


def test_what_a_loaded_class_prints_goes_to_stderr(tmp_path: Path, code_dir: Path, capsys) -> None:
    torch.save(user_net(code_dir), tmp_path / "model.pt")
    del sys.modules["user_net"]
    capsys.readouterr()
    read(tmp_path / "model.pt", trust_pickle=True, code_dirs=[code_dir])
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "a factory module that prints\n")


def test_lazy_module_that_never_ran_is_refused():
    with pytest.raises(CheckpointError, match=r"without a shape or values: weight, bias\."):
        in_eval_mode(nn.LazyLinear(4))
    lazy = nn.LazyLinear(4)
    lazy(torch.zeros(1, 3))
    assert not in_eval_mode(lazy).training


def test_module_without_values_is_refused():
    with torch.device("meta"):
        module = nn.BatchNorm1d(2, affine=False)
        module.last = nn.Linear(2, 3)
    named = r"last\.weight, last\.bias, running_mean, running_var, num_batches_tracked"
    with pytest.raises(CheckpointError, match=rf"on the meta device: {named}\."):
        in_eval_mode(module)


@pytest.mark.filterwarnings("ignore:.*quanti")
def test_quantised_model_is_refused_with_what_to_export_instead() -> None:
    model = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8))
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    with pytest.raises(CheckpointError, match=r"quantised: '1' is or holds a torch\.ao") as caught:
        in_eval_mode(quantised)
    assert "floating point" in str(caught.value.hint)


@pytest.mark.filterwarnings("ignore:.*(quanti|Please use quant_min)")
@pytest.mark.parametrize("prepare", ["prepare", "prepare_qat"])
def test_model_that_simulates_quantisation_is_refused_with_what_to_export(prepare: str) -> None:
    model = nn.Sequential(torch.ao.quantization.QuantStub(), nn.Linear(8, 8)).train()
    model.qconfig = torch.ao.quantization.get_default_qat_qconfig()
    if prepare == "prepare":
        model.eval().qconfig = torch.ao.quantization.default_qconfig
    prepared = getattr(torch.ao.quantization, prepare)(model)
    with pytest.raises(
        CheckpointError, match=r"simulates quantisation: '\d\.\w+' is a tor"
    ) as told:
        in_eval_mode(prepared)
    assert "Export the float model" in str(told.value.hint)
    assert "precision --to int8" in str(told.value.hint)


def test_model_in_floating_point_is_none() -> None:
    """One that is ready for quantisation computes in floating point as well."""
    stub = torch.ao.quantization.QuantStub()
    model = nn.Sequential(stub, nn.LayerNorm(8), nn.Linear(8, 8))
    assert in_eval_mode(model) is model
