"""The zoo by way of ONNX files: the same layers as from PyTorch, and the numbers of the file.

The files are those that `bench --baseline plain-onnx` writes; `test_forms.py` has those of others.
"""

from pathlib import Path

import pytest
import torch

from moh_deploy.config.export_config import ExportConfig
from moh_deploy.errors import ExportError
from moh_deploy.frontend.emit import quiet
from moh_deploy.frontend.fx.arrays import to_numpy
from moh_deploy.frontend.inputs.example_inputs import example_inputs
from moh_deploy.frontend.inputs.sizes import dynamic_shapes
from moh_deploy.frontend.load.checkpoint_file import load_onnx
from moh_deploy.frontend.load.model import positional, taking_tensors
from moh_deploy.frontend.normalize import normalize
from moh_deploy.frontend.trace import trace
from tests.frontend.rewritten import checked_layers
from tests.frontend.traced import traced
from tests.nightly import nightly, one_in
from tests.zoo import MISSED, ZOO, ExpectedLayer, ZooModel

_FOLDED = ExpectedLayer(4, 4, top_k=None, num_shared_heads=None, router="constant")
_CONSTANT = ExpectedLayer(4, 4, top_k=2, num_shared_heads=0, router="constant")
OTHERWISE = {
    **dict.fromkeys(("seed_vectors", "learned_importance"), (_FOLDED,)),
    "select_argsort": (ExpectedLayer(4, 4, top_k=2, num_shared_heads=0, router="ranked"),),
    "select_top_p": (ExpectedLayer(4, 4, top_k=4, num_shared_heads=0, router="custom"),),
    "split_queries": (_CONSTANT, _CONSTANT),
}
"""Models whose layers are others by way of ONNX: the exporter folds gates that no input changes,
and how many are chosen is seen no more; a sort is exported as TopK of all heads. `select_argsort`
is `ranked` then, `select_top_p` chooses 4 of 4. The router of `split_queries`' second layer reads
what its first makes of weights alone: an op from PyTorch, and known numbers by way of ONNX."""

LOST = {
    "no_number_is_zero": "nan_to_num becomes choices, in which the weights are lost; in"
    " PyTorch, too, their layer is not replaced, but counted",
    "learned_sigmoids": "the exporter folds gates that no input changes, and none of them is 0",
    **dict.fromkeys(
        ("mapped_heads", "summed_by_index", "one_head_at_a_time", "chosen_tokens_added"),
        "heads that are computed one by one are not stacked as the exporter writes them",
    ),
}
"""Models none of whose layers is found by way of ONNX, and why."""

_DECLARED = "were declared separately, but the model needs them to be equal"
_BY_VALUES = "the shape of what it returns cannot be told before it runs"
REFUSED = {
    "static_cache": _DECLARED,
    "scattered_cache": _DECLARED,
    "nodes_by_nodes": _BY_VALUES,
    "added_by_index": _BY_VALUES,
}
"""Models whose files are refused, and with which words: in the first two the exporter gives one
size two names, in the others a NonZero stays."""

NOT_EXPORTED = {
    "two_batch_axes": "torch.onnx.export does not translate its reshapes",
    "relative_shift": "nor its view of a product",
    "weighed_average": "nor attention of rank 3",
}
"""Models that PyTorch does not write as ONNX by itself."""

EXPORTED = [animal for animal in ZOO if animal.name not in NOT_EXPORTED]


@nightly
@pytest.mark.parametrize("animal", one_in(len(EXPORTED), EXPORTED), ids=lambda animal: animal.name)
def test_layers_are_those_of_the_model_in_pytorch(animal: ZooModel, tmp_path: Path) -> None:
    write_plain(animal, tmp_path / "model.onnx")
    if animal.name in REFUSED:
        with pytest.raises(ExportError, match=REFUSED[animal.name]):
            layers_of_file(tmp_path / "model.onnx", animal)
        return
    assert layers_of_file(tmp_path / "model.onnx", animal) == _by_way_of_onnx(animal)


def _by_way_of_onnx(animal: ZooModel) -> tuple[ExpectedLayer, ...]:
    if animal.name in LOST:
        return ()
    if animal.name in OTHERWISE:
        return OTHERWISE[animal.name]
    return animal.expected.layers


@pytest.mark.nightly
@pytest.mark.parametrize("animal", MISSED, ids=lambda animal: animal.name)
def test_what_is_missed_in_pytorch_is_found_no_worse(animal: ZooModel, tmp_path: Path) -> None:
    module = animal.build().eval()
    expected = checked_layers(traced(module, animal.inputs()), module, animal)
    write_plain(animal, tmp_path / "model.onnx")
    assert layers_of_file(tmp_path / "model.onnx", animal) == expected


@pytest.mark.nightly
@pytest.mark.parametrize("name", NOT_EXPORTED)
def test_what_pytorch_does_not_export_it_still_does_not(name: str, tmp_path: Path) -> None:
    (animal,) = (item for item in ZOO if item.name == name)
    with pytest.raises(Exception, match=r"Failed to (convert|decompose)"):
        write_plain(animal, tmp_path / "model.onnx")


@nightly
def test_what_onnx_runtime_has_fused_is_read(tmp_path: Path) -> None:
    import onnx
    import onnxruntime as ort

    (animal,) = (item for item in ZOO if item.name == "vit_two_stage")
    write_plain(animal, tmp_path / "model.onnx")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    ort.InferenceSession(tmp_path / "model.onnx", options, providers=["CPUExecutionProvider"])
    fused = onnx.load(tmp_path / "fused.onnx", load_external_data=False)
    operators = {node.op_type for node in fused.graph.node if node.domain == "com.microsoft"}
    assert {"FusedMatMul", "BiasGelu"} <= operators
    assert layers_of_file(tmp_path / "fused.onnx", animal) == animal.expected.layers


def layers_of_file(path: Path, animal: ZooModel) -> tuple[ExpectedLayer, ...]:
    loaded = load_onnx(path)
    arrays = {item.name: to_numpy(item.value) for item in animal.inputs()}
    _, inputs = example_inputs(loaded, ExportConfig(), npz=arrays)
    program = normalize(trace(loaded, inputs))
    # Two runtimes, each with its own order of summation.
    return checked_layers(program, loaded.callable(), animal, within=1e-4)


def write_plain(animal: ZooModel, path: Path) -> None:
    module, inputs = animal.build().eval(), animal.inputs()
    names = [item.name for item in inputs]
    with quiet(), taking_tensors(module, positional(names)) as parameters:
        torch.onnx.export(
            module,
            tuple(item.value for item in inputs),
            path,
            dynamo=True,
            input_names=names,
            dynamic_shapes=dynamic_shapes(parameters, inputs, bounds={}),
            verbose=False,
        )
