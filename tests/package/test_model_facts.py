"""The form of a router is told by its operators: no other name for it is accepted."""

from dataclasses import replace
from pathlib import Path

import pytest

from moh_deploy.errors import PackageError
from moh_deploy.frontend.fx.arrays import to_numpy
from moh_deploy.ops.routers import FORMS
from moh_deploy.package import OnnxPackage, load_without_weights
from moh_deploy.package.facts import check_facts, recorded_facts
from moh_deploy.package.model_facts import model_facts
from tests.exporting import export, prove_in_this_process
from tests.nightly import nightly
from tests.zoo import ZOO

# Models of each form.
FORM_OF = {
    "all_shared": "shared",
    "dit": "two_stage",
    "two_stage_one_shared": "two_stage",
    "select_top_then_softmax": "top_k",
    "llama_decode": "query_norm",
    "select_binary_mask": "mask",
    "select_sigmoid": "ranked",
    "select_sigmoids_behind_shared": "ranked",
    "select_sigmoid_beside_softmax": "mixed",
    "select_sigmoids_one_projection": "mixed",
    "select_bias_corrected": "scored",
    "select_group_limited": "scored",
    "learned_queries": "constant",
}


@nightly
@pytest.mark.parametrize("name", FORM_OF)
def test_other_form_than_the_operators_show_is_refused(tmp_path: Path, name: str, monkeypatch):
    prove_in_this_process(monkeypatch)
    (animal,) = (found for found in ZOO if found.name == name)
    example = animal.inputs()
    axes = [f"{i.name}:{','.join(f'{a}={d}' for a, d in i.dims.items())}" for i in example]
    inputs = {item.name: to_numpy(item.value) for item in example}
    export(animal.build(), tmp_path / "package", inputs=inputs, dynamic=tuple(axes))
    package = OnnxPackage.open(tmp_path / "package")
    model, manifest = load_without_weights(package.model_path), package.manifest
    first, *others = manifest.layers
    assert first.router == FORM_OF[name]
    for form in [found.name for found in FORMS if found.name != first.router]:
        wrong = replace(manifest, layers=(replace(first, router=form), *others))
        facts = (*model_facts(wrong, model), *recorded_facts(wrong, package.vectors))
        with pytest.raises(PackageError, match=rf"'layers\[0\]\.router' says '{form}'"):
            check_facts(Path("manifest.json"), facts, shown_by="model.onnx")
