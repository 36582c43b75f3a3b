"""Model directories: their weights are held once, and what is wrong with them is said."""

import ast
import json
import os
from pathlib import Path

import pytest
import torch

from moh_deploy.config.export_config import ModelSection
from moh_deploy.errors import CheckpointError, ConfigError
from moh_deploy.frontend.load import model_directory
from moh_deploy.frontend.load.load_directory import load_directory
from tests.text.model_directories import SMALL, plain_torch_model, write_plain_torch


def load(root: Path, **options: object):
    trusted = {"trust_code": True, "trust_pickle": False}
    trusted |= {name: options.pop(name) for name in trusted.keys() & options.keys()}
    loaded = load_directory(root, ModelSection(**options), **trusted)
    return loaded.module, loaded.checkpoint_sha256, loaded.directory


def same_logits(module: torch.nn.Module, model: torch.nn.Module) -> bool:
    ids = torch.tensor([[5, 9, 3]])
    with torch.no_grad():
        return torch.equal(module.eval()(ids)[0], model(ids)[0])


@pytest.mark.parametrize("shards", [1, 3])
def test_weights_are_those_of_the_files(tmp_path: Path, shards: int):
    model = write_plain_torch(tmp_path, shards=shards)
    module, digest, _ = load(tmp_path)
    assert same_logits(module, model)
    assert len(digest) == 64


def test_pickled_weights_are_read_as_plain_data(tmp_path: Path):
    model = write_plain_torch(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert same_logits(load(tmp_path)[0], model)


def test_tied_weights_are_one_tensor_as_before(tmp_path: Path):
    model = write_plain_torch(tmp_path, tie_word_embeddings=True)
    module = load(tmp_path)[0]
    assert module.head.weight is module.embed.weight
    assert same_logits(module, model)


def test_weights_are_the_pages_of_the_file(tmp_path: Path):
    write_plain_torch(tmp_path, vocab_size=50_000, hidden_size=64)
    module = load(tmp_path)[0]
    mapped = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    pages = [item[0].split("-") for item in mapped if item[-1].endswith("model.safetensors")]
    start = module.embed.weight.data_ptr()
    assert any(int(first, 16) <= start < int(last, 16) for first, last in pages)


def test_code_is_not_run_without_trust(tmp_path: Path):
    write_plain_torch(tmp_path)
    (tmp_path / "modeling_small.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(CheckpointError, match=r"modeling_small\.py, and loading it") as error:
        load(tmp_path, trust_code=False)
    assert "--trust-code" in error.value.hint


def test_code_leaves_nothing_beside_the_weights(tmp_path: Path):
    write_plain_torch(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    load(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def with_code_apart(tmp_path: Path) -> tuple[Path, Path, torch.nn.Module]:
    """Write a model directory, its code in another one, and return both and the model."""
    root, code = tmp_path / "model", tmp_path / "code"
    model = write_plain_torch(root)
    code.mkdir()
    for file in root.glob("*.py"):
        file.rename(code / file.name)
    return root, code, model


def test_code_of_the_users_needs_no_trust(tmp_path: Path):
    root, code, model = with_code_apart(tmp_path)
    assert same_logits(load(root, code_dirs=(code,), trust_code=False)[0], model)


@pytest.mark.parametrize("named_by", ["config", "import"])
def test_class_of_the_users_trusts_no_code_of_the_directory(tmp_path: Path, named_by: str):
    root, code, _ = with_code_apart(tmp_path)
    (root / "stranger.py").write_text("raise SystemExit('it ran')")
    if named_by == "config":
        change_config(root, auto_map={**SMALL["auto_map"], "AutoConfig": "stranger.Config"})
    else:
        own = code / "modeling_small.py"
        own.write_text(own.read_text().replace("import torch\n", "from . import stranger\n", 1))
    with pytest.raises(ConfigError, match=r"cannot be imported: (ModuleNotFound|Import)Error"):
        load(root, code_dirs=(code,), trust_code=False)
    with pytest.raises(ConfigError, match="SystemExit: it ran"):
        load(root, code_dirs=(code,), trust_code=True)


def test_missing_part_of_the_users_code_may_be_the_directorys(tmp_path: Path):
    root, code, model = with_code_apart(tmp_path)
    (code / "sizes.py").rename(root / "sizes.py")
    with pytest.raises(ConfigError, match=r"No module named '\w+\.sizes'") as error:
        load(root, code_dirs=(code,), trust_code=False)
    assert "directory of sizes.py with --code-dir, or add --trust-code" in error.value.hint
    assert same_logits(load(root, code_dirs=(code,), trust_code=True)[0], model)


def test_code_of_another_directory_is_another_model(tmp_path: Path):
    first, second = tmp_path / "first", tmp_path / "second"
    write_plain_torch(first)
    model = write_plain_torch(second)
    (first / "modeling_small.py").write_text(
        (second / "modeling_small.py").read_text().replace("self.head(", "-self.head(")
    )
    wrong, right = load(first)[0], load(second)[0]
    assert same_logits(right, model)
    assert not same_logits(wrong, model)


def test_directory_without_config_is_none(tmp_path: Path):
    (tmp_path / "weights.pt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"without config\.json") as error:
        load(tmp_path)
    assert "weights.pt" in error.value.hint


def test_directory_without_weights_says_so(tmp_path: Path):
    write_plain_torch(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="without weights; expected one of model"):
        load(tmp_path)


def test_missing_shard_is_named(tmp_path: Path):
    write_plain_torch(tmp_path, shards=2)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors: no such file"):
        load(tmp_path)


def change_config(root: Path, **changes: object) -> None:
    (root / "config.json").write_text(json.dumps({**SMALL, **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"intermediate_size": 40}, r"contradicts config\.json: blocks.*weight"),
        (
            {"num_hidden_layers": 3},
            r"config\.json: the checkpoint lacks 9 weights, blocks\.2\.\S+ among them\.",
        ),
        (
            {"num_hidden_layers": 1},
            r"json: the model has no place for 9 weights, blocks\.1\.\S+ among them\.",
        ),
        (
            {"auto_map": {"AutoModelForCausalLM": "owner/name--other.Model"}},
            "code of another repository, 'owner/name--other",
        ),
        ({"quantization_config": {"bits": 4}}, "quantised"),
    ],
    ids=["shapes", "more_layers", "fewer_layers", "code_elsewhere", "quantised"],
)
def test_config_that_does_not_fit_is_refused(
    tmp_path: Path, changes: dict[str, object], message: str
):
    write_plain_torch(tmp_path)
    change_config(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message) as refused:
        load(tmp_path)
    assert "\n" not in refused.value.message


PLACE = "modeling_small.SmallForCausalLM"
OTHER = "modeling_small.Block"


@pytest.mark.parametrize(
    ("auto_map", "architectures"),
    [
        ({"AutoModel": PLACE}, ["SmallForCausalLM"]),
        ({"AutoModelForSequenceClassification": PLACE, "AutoTokenizer": ["a.B", None]}, None),
        ({"AutoModel": OTHER, "AutoModelForImageClassification": PLACE}, ["SmallForCausalLM"]),
        ({"AutoModelForCausalLM": PLACE, "AutoModel": OTHER}, None),
    ],
    ids=["base", "only_model", "of_the_checkpoint", "language_model"],
)
def test_class_of_any_task_is_the_directorys(
    tmp_path: Path, auto_map: dict[str, object], architectures: list[str] | None
):
    model = write_plain_torch(tmp_path)
    auto_map = {"AutoConfig": "sizes.SmallConfig", **auto_map}
    change_config(tmp_path, auto_map=auto_map, architectures=architectures)
    assert same_logits(load(tmp_path)[0], model)


@pytest.mark.parametrize("beside", [True, False], ids=["in_the_directory", "in_a_code_dir"])
def test_code_of_another_repository_that_lies_here_is_used(tmp_path: Path, beside: bool):
    root, code, model = with_code_apart(tmp_path)
    for file in code.glob("*.py") if beside else ():
        file.rename(root / file.name)
    places = SMALL["auto_map"].items()
    change_config(root, auto_map={kind: f"owner/name-3.5--{place}" for kind, place in places})
    module = load(root, code_dirs=(code,), trust_code=beside)[0]
    assert same_logits(module, model)


def test_lock_of_an_editor_is_no_code(tmp_path: Path):
    root, code, model = with_code_apart(tmp_path)
    (code / ".#model.py").symlink_to("somebody@somewhere.1234")
    assert same_logits(load(root, code_dirs=(code,))[0], model)


def test_tokenizer_that_cannot_be_read_is_told_before_anything_runs(tmp_path: Path, monkeypatch):
    opened = os.open

    def refuse(path: str | Path, flags: int) -> int:
        if Path(path).name == "tokenizer.json":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, flags)

    write_plain_torch(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(
        CheckpointError, match=r"tokenizer\.json: cannot be read: Permission denied"
    ):
        load(tmp_path)


def test_code_that_fails_at_import_is_told(tmp_path: Path):
    write_plain_torch(tmp_path)
    (tmp_path / "modeling_small.py").write_text("import no_such_package_here")
    with pytest.raises(ConfigError, match="no_such_package_here"):
        load(tmp_path)


def test_factory_takes_the_place_of_the_directorys_class(tmp_path: Path):
    model = write_plain_torch(tmp_path)
    (tmp_path / "made.py").write_text(
        "from tests.text.model_directories import plain_torch_model as build\n"
    )
    module, _, _ = load(tmp_path, factory="made:build", code_dirs=(tmp_path,), trust_code=False)
    assert same_logits(module, model)


def test_buffers_outside_of_the_weights_are_computed(tmp_path: Path):
    write_plain_torch(tmp_path)
    assert torch.equal(load(tmp_path)[0].cos, plain_torch_model().cos)


def test_names_that_are_gone_are_imported_from_ours(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(model_directory, "_is_gone", lambda module, name, level: name == "gone")
    tree = ast.parse("from transformers.x import gone, there")
    assert ast.unparse(model_directory._Redirected().visit(tree)).split("\n") == [
        "from transformers.x import there",
        "from moh_deploy.frontend.load.old_transformers import gone",
    ]
