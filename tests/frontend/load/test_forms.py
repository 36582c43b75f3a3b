"""The published models in each form that a checkpoint may have: docs/forms.md has the table."""

import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnxruntime as ort
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from moh_deploy.config.export_config import ModelSection
from moh_deploy.config.options import ExportOptions
from moh_deploy.frontend.export_package import export_package
from moh_deploy.frontend.fx.arrays import to_numpy
from moh_deploy.frontend.load.load import load
from moh_deploy.frontend.load.model import ModelInput
from moh_deploy.frontend.normalize import normalize
from moh_deploy.frontend.quiet import no_warnings
from moh_deploy.frontend.trace import trace
from tests.exporting import run
from tests.frontend.load.onnx_graph.test_zoo import layers_of_file, write_plain
from tests.frontend.rewritten import checked_layers, results
from tests.frontend.traced import loaded
from tests.nightly import in_turn, nightly
from tests.zoo import Expected, ExpectedLayer, ZooModel
from tests.zoo.collection import AGGREGATED, PUBLISHED

PAGE = Path(__file__).parents[3] / "docs" / "forms.md"
BY_NAME = {animal.name: animal for animal in PUBLISHED}


def build(name: str) -> nn.Module:
    """Return a model without the weights that its checkpoint has."""
    model = BY_NAME[name].build()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return model


def write_pickle(animal: ZooModel, path: Path) -> None:
    torch.save(animal.build(), path)


def write_state_dict(animal: ZooModel, path: Path) -> None:
    torch.save(animal.build().state_dict(), path)


def write_training_checkpoint(animal: ZooModel, path: Path) -> None:
    model = nn.DataParallel(animal.build())
    optimizer = torch.optim.AdamW(model.parameters())
    content = {"epoch": 3, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(content, path)


def write_safetensors(animal: ZooModel, path: Path) -> None:
    save_file(animal.build().state_dict(), path)


def write_program(animal: ZooModel, path: Path) -> None:
    torch.export.save(trace(loaded(animal.build().eval()), animal.inputs()), path)


def write_decomposed(animal: ZooModel, path: Path) -> None:
    with no_warnings():
        program = trace(loaded(animal.build().eval()), animal.inputs()).run_decompositions()
    torch.export.save(program, path)


def write_by_torchscript(animal: ZooModel, path: Path) -> None:
    inputs = animal.inputs()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            animal.build().eval(),
            tuple(item.value for item in inputs),
            path,
            dynamo=False,
            opset_version=17,
            input_names=[item.name for item in inputs],
            dynamic_axes={item.name: item.dims for item in inputs},
        )


def write_fused(animal: ZooModel, path: Path) -> None:
    """Let ONNX Runtime write what it made of the file of torch.onnx."""
    plain = path.with_name("plain.onnx")
    write_plain(animal, plain)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    ort.InferenceSession(plain, options, providers=["CPUExecutionProvider"])


Write = Callable[[ZooModel, Path], None]
WEIGHTS: dict[str, Write] = {
    "pickle": write_pickle,
    "state dict": write_state_dict,
    "training checkpoint": write_training_checkpoint,
    "safetensors": write_safetensors,
}
PROGRAMS: dict[str, Write] = {".pt2": write_program, "core ATen": write_decomposed}
ONNX: dict[str, Write] = {
    "torch.onnx": write_plain,
    "TorchScript": write_by_torchscript,
    "ONNX Runtime": write_fused,
}


def read(form: str, animal: ZooModel, path: Path) -> nn.Module:
    """Write a model in a form that holds its weights, and return what is loaded of it."""
    WEIGHTS[form](animal, path)
    is_pickle = form == "pickle"
    section = ModelSection()
    if not is_pickle:
        section = ModelSection(factory=f"{__name__}:build", kwargs={"name": animal.name})
    module = load(path, section, trust_pickle=is_pickle).module
    assert module is not None
    return module


@pytest.mark.parametrize(("name", "form"), in_turn(BY_NAME, list(WEIGHTS)))
def test_weights_of_each_form_are_those_of_the_model(name: str, form: str, tmp_path: Path) -> None:
    animal = BY_NAME[name]
    got = results(read(form, animal, tmp_path / "model"), animal.inputs())
    for output, expected in zip(got, results(animal.build().eval(), animal.inputs()), strict=True):
        assert torch.equal(output, expected)


@nightly
@pytest.mark.parametrize("name", BY_NAME)
def test_table_of_forms_has_the_layers_that_are_found(name: str, tmp_path: Path) -> None:
    animal = BY_NAME[name]
    forms = (*WEIGHTS, *PROGRAMS)
    cells = [_cell(_layers(form, animal, tmp_path / f"{form}.pt2"), animal) for form in forms]
    for form, write in ONNX.items():
        path = tmp_path / f"{form}.onnx"
        try:
            write(animal, path)
        except Exception:  # the exporter's
            cells.append("not exported")
        else:
            cells.append(_cell(layers_of_file(path, animal), animal))
    assert f"| `{name}` | {' | '.join(cells)} |" in PAGE.read_text().splitlines()


def _layers(form: str, animal: ZooModel, path: Path) -> tuple[ExpectedLayer, ...]:
    """Return the layers in a file of PyTorch; rewritten they compute what the model does."""
    if form in WEIGHTS:
        model = loaded(read(form, animal, path))
    else:
        PROGRAMS[form](animal, path)
        model = load(path, ModelSection())
    program = normalize(trace(model, animal.inputs()))
    return checked_layers(program, animal.build().eval(), animal)


def _cell(layers: tuple[ExpectedLayer, ...], animal: ZooModel) -> str:
    alike = Counter(layers) & Counter(animal.expected.layers)
    return f"{alike.total()} of {animal.expected.num_layers}"


# A router without numbers for padding, from each form of a checkpoint.


class TwoRoutedHeads(nn.Module):
    """The router of MoH-LLaMA3 with two routed heads, behind an embedding that is 0 for padding.

    The logits of padding are 0 / 0. Those of a token whose two heads are nearly alike are divided
    by next to nothing: rounding moves them a thousand times as far as others.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32, padding_idx=0)
        self.layers = nn.ModuleList(nn.Linear(32, size, bias=False) for size in (64, 32) * 2)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        x, causal = self.embed(input_ids), torch.ones(input_ids.shape[1:] * 2, dtype=torch.bool)
        mask = causal.tril() & attention_mask[:, None, None, :].bool()
        mask = torch.where(mask, 0.0, torch.finfo(x.dtype).min)
        for project, out in zip(self.layers[::2], self.layers[1::2], strict=True):
            query, key, value = project(x).unflatten(-1, (-1, 8)).split([4, 2, 2], dim=2)
            norm = query[:, :, 2:].norm(dim=-1)
            best = (norm / norm.std(dim=-1, keepdim=True)).softmax(-1).topk(1, dim=-1).indices
            routed = nn.functional.one_hot(best, 2).sum(-2).to(x.dtype)
            gates = torch.cat([torch.ones_like(routed), routed], dim=-1)
            key, value = (t.transpose(1, 2).repeat_interleave(2, 1) for t in (key, value))
            heads = nn.functional.scaled_dot_product_attention(
                query.transpose(1, 2), key, value, attn_mask=mask
            ).transpose(1, 2)
            x = x + out((heads * gates.unsqueeze(-1)).flatten(2))
        return x


def two_routed_heads(name: str = "") -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1 if name else 0)  # a factory's weights are not those of the checkpoint
        return TwoRoutedHeads().eval()


def padded_on_the_left() -> tuple[ModelInput, ...]:
    ids = torch.tensor(
        [[17, 21, 33, 2, 40, 11, 8, 3, 7, 31, 9, 5], [0, 0, 0, 0, 0, 1, 6, 23, 9, 44, 8, 12]]
    )
    dims = {0: "batch", 1: "seq"}
    mask = (ids != 0).long()
    return ModelInput("input_ids", ids, dims), ModelInput("attention_mask", mask, dims)


@nightly
@pytest.mark.parametrize("form", [*WEIGHTS, ".pt2"])
def test_router_without_numbers_for_padding_exports_from_each_form(form: str, tmp_path: Path):
    inputs, path = padded_on_the_left(), tmp_path / "model"
    animal = ZooModel("two_routed", two_routed_heads, padded_on_the_left, Expected(), "")
    {**WEIGHTS, **PROGRAMS}[form](animal, path)
    options = ExportOptions(
        path,
        tmp_path / "package",
        trust_pickle=form == "pickle",
        trust_code=True,
        inputs={item.name: to_numpy(item.value) for item in inputs},
        dynamic=tuple(f"{item.name}:0=batch,1=seq" for item in inputs),
        overrides=()
        if form in ("pickle", ".pt2")
        else (f"model.factory={__name__}:two_routed_heads", "model.kwargs.name=weights"),
    )
    assert [layer.replaced for layer in export_package(options).layers] == [True, True]
    ids, mask = (item.value for item in inputs)
    got = run(tmp_path / "package", input_ids=ids.numpy(), attention_mask=mask.numpy())["output"]
    valid, expected = mask.bool(), two_routed_heads()(ids, mask)
    torch.testing.assert_close(torch.from_numpy(got)[valid], expected[valid])


# A program that its author saved, not this project.


@nightly
@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("dim", [torch.export.Dim("batch"), torch.export.Dim.AUTO], ids=str)
def test_windows_of_an_authors_program_export_with_a_dynamic_batch(
    dim: object, decomposed: bool, tmp_path: Path
):
    (pyramid,) = (animal for animal in AGGREGATED if animal.name == "pyramid")
    model, example = pyramid.build().eval(), pyramid.inputs()
    with torch.no_grad():
        program = torch.export.export(model, (example[0].value,), dynamic_shapes=({0: dim},))
    with no_warnings():  # torch's, about buffers that share memory, and its own code
        if decomposed:
            program = program.run_decompositions()
        torch.export.save(program, tmp_path / "model.pt2")
    options = ExportOptions(tmp_path / "model.pt2", tmp_path / "package")
    assert [layer.replaced for layer in export_package(options).layers] == [True, True]
    (images,) = (item.value for item in pyramid.inputs(batch=5))
    got = run(tmp_path / "package", images=images.numpy())["output"]
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(got), model(images), rtol=1e-4, atol=1e-5)
