"""Manifests that say something else than model.onnx and the recorded runs show.

Each edit computes the manifest's digest anew.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import moh_deploy
from moh_deploy.derive.forms import write_caches_in_place
from moh_deploy.errors import PackageError
from moh_deploy.package import OnnxPackage, TextGeneration
from moh_deploy.package.facts import recorded_facts
from moh_deploy.package.vectors import write_vectors
from moh_deploy.system.progress import SilentProgress
from tests.graph.decoders import write_decoder
from tests.grouped_package import write_grouped
from tests.half_packages import write_unprotected
from tests.handmade_package import MANIFEST, vectors, write_package
from tests.projected_package import write_projected
from tests.repaired_package import change_model, replace_file, rewrite_manifest
from tests.routed_package import write_routed

L0, L1 = "layers[0]", "layers[1]"


def ranged(output: Path) -> OnnxPackage:
    write_projected(output)
    moh_deploy.tune(output, choose={"all[seq<=3]": "dense", "all": "projected"})
    return OnnxPackage.open(output)


def half(output: Path) -> OnnxPackage:
    return write_unprotected(write_grouped(output.with_suffix(".float32")), output)


def pruned(output: Path) -> OnnxPackage:
    whole = write_grouped(output.with_suffix(".whole"))
    moh_deploy.prune(whole.root, output, keep=3)
    return OnnxPackage.open(output)


def in_place(output: Path) -> OnnxPackage:
    growing = write_decoder(output.with_suffix(".growing"))
    return write_caches_in_place(growing, output, SilentProgress())


def routed(output: Path) -> OnnxPackage:
    write_routed(output)
    rewrite_manifest(output, lambda content: edit(content, f"{L1}.top_k", 2))
    return OnnxPackage.open(output)


WRITERS: dict[str, Callable[[Path], OnnxPackage]] = {
    "router of plain operators": write_package,
    "MoHRouter": lambda output: write_grouped(output, twice=True),
    "projections": write_projected,
    "choice by size": ranged,
    "float16": half,
    "pruned": pruned,
    "caches in place": in_place,
    "scores recorded": routed,
}

# Key path: any of these values is refused there.
EDITS: dict[str, dict[str, tuple[object, ...]]] = {
    "router of plain operators": {
        "inputs[0].dtype": ("float16",),
        "inputs[0].shape": (["batch", "seq"],),
        "inputs[0].shape[2]": (9, "seq"),
        "inputs[0].shape[1]": (3,),
        "outputs[0].name": ("z",),
        "outputs[0].dtype": ("float16",),
        "outputs[0].shape[2]": (9, "seq"),
        "dims.batch": (1, 3, 10**6),
        "dims.seq": (4,),
        "dim_ranges": ({"seq": [4, 10**6]}, {"batch": [1, 1]}),
        "opset": (19, 24),
        "ops": ({}, {"moh::MoHAttention": 2}, {"moh::MoHAttention": 1, "moh::MoHRouter": 1}),
        "precision": ("float16", "bfloat16", "int8", "int4"),
        "proof.sizes": ([], [{"batch": 64, "seq": 2048}], [{"batch": 2, "seq": 3}] * 2),
        "float32_nodes": ([{"name": "nowhere", "reason": "it has to"}],),
        "layers": ([],),
        f"{L0}.num_heads": (2, 8),
        f"{L0}.num_kv_heads": (2, 1),
        f"{L0}.head_dim": (1, 4, 64),
        f"{L0}.router": ("constant", "other"),
        f"{L0}.router_replaced": (True,),
        f"{L0}.node": ("scaled", "nowhere"),
        f"{L0}.gates": ("gates_1",),
        f"{L0}.attention": ("heads_1",),
        f"{L0}.batch": (1, 64),
        f"{L0}.seq_len": (2, 2048),
        f"{L0}.kv_len": (1, 2048),
        f"{L0}.active_share": (0.0, 0.25, 0.46, 1.0),
        f"{L0}.op": ("MoHAggregatedAttention",),
        f"{L0}.choice": ("dense",),
        f"{L0}.ranges": ([{"size": "seq", "at_most": 3, "choice": "dense"}],),
        f"{L0}.query_projection": ("router", "nowhere"),
        f"{L0}.output_projection": ("scaled",),
        f"{L0}.closed_heads": ([0], [1, 2]),
    },
    "MoHRouter": {
        L1: ("left out",),
        L0: ("left out",),
        f"{L0}.top_k": (0, 1, 3, 5, None),
        f"{L1}.top_k": (1, 4),
        f"{L0}.num_shared_heads": (0, 2, None),
        f"{L0}.num_kv_heads": (1, 6),
        f"{L0}.router": (
            *("constant", "shared", "two_stage", "query_norm", "mask"),
            *("ranked", "mixed", "scored", "other"),
        ),
        f"{L1}.node": ("blocks.0.attn/moh",),
        f"{L0}.active_share": (0.49, 0.51),
        f"{L0}.closed_heads": ([5],),
        "ops": ({"moh::MoHAttention": 1},),
    },
    "projections": {
        f"{L0}.query_projection": (None, "blocks.0.attn/o"),
        f"{L0}.output_projection": (None, "blocks.0.attn/q"),
        f"{L0}.choice": ("dense", "sparse"),
        f"{L0}.ranges": ([{"size": "seq", "at_most": 3, "choice": "dense"}],),
    },
    "choice by size": {
        f"{L0}.ranges": (
            [],
            [{"size": "seq", "at_most": 10**6, "choice": "dense"}],
            [{"size": "batch", "at_most": 3, "choice": "dense"}],
            [{"size": "seq", "at_most": 3, "choice": "sparse"}],
        ),
        f"{L0}.choice": ("sparse", "dense"),
        f"{L0}.query_projection": (None,),
        f"{L0}.num_kv_heads": (1,),
    },
    "float16": {
        "precision": ("bfloat16", "int8", "int4"),
        f"{L0}.top_k": (1, 3),
        f"{L0}.head_dim": (8,),
        f"{L0}.router": ("mask", "scored", "constant"),
    },
    "pruned": {
        f"{L0}.num_heads": (2, 4),
        f"{L0}.closed_heads": ([0],),
        f"{L0}.active_share": (0.5,),
        f"{L0}.router": ("custom", "top_k", "shared"),
    },
    "caches in place": {
        "caches.buffers[0].past": ("past_value",),
        "caches.buffers[0].axis": (1,),
        "dims.buffer": (1, 10**6),
        f"{L0}.router": ("constant",),
    },
    "scores recorded": {f"{L1}.top_k": (1, 3, 4)},
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], OnnxPackage]:
    """Return a package of a kind, written once."""
    found: dict[str, OnnxPackage] = {}

    def of(kind: str) -> OnnxPackage:
        if kind not in found:
            found[kind] = WRITERS[kind](tmp_path_factory.mktemp("kinds") / "package")
        return found[kind]

    return of


def cases() -> list[object]:
    return [pytest.param(kind, key, id=f"{kind}: {key}") for kind in EDITS for key in EDITS[kind]]


def edit(content: dict[str, Any], key: str, value: object) -> None:
    """Set a value by its key path, `layers[0].top_k`; or leave it out of its list."""
    parts = key.replace("]", "").replace("[", ".").split(".")
    *way, last = (int(part) if part.isdecimal() else part for part in parts)
    holder: Any = reduce(lambda found, part: found[part], way, content)
    if value == "left out":
        del holder[last]
    else:
        holder[last] = value


@pytest.mark.parametrize(("kind", "key"), cases())
def test_manifest_that_the_package_contradicts_is_refused(
    written: Callable[[str], OnnxPackage], kind: str, key: str
):
    root = written(kind).root
    manifest = root / "manifest.json"
    before = manifest.read_bytes()
    for value in EDITS[kind][key]:
        try:
            rewrite_manifest(root, lambda content, value=value: edit(content, key, value))
            with pytest.raises(PackageError) as error:
                OnnxPackage.open(root)
        finally:
            manifest.write_bytes(before)
        assert f"{manifest}: key '" in error.value.message
        assert error.value.exit_code == 5
        assert error.value.hint


def test_layer_that_is_left_out_of_all_files_is_refused(tmp_path: Path):
    package = write_grouped(tmp_path / "package", twice=True)
    (recorded,) = package.vectors
    fewer = replace(recorded, gates=recorded.gates[:1], margins=recorded.margins[:1])
    write_vectors(tmp_path / "vectors.npz", [fewer])
    replace_file(package.root, "vectors.npz", (tmp_path / "vectors.npz").read_bytes())
    rewrite_manifest(package.root, lambda content: edit(content, L1, "left out"))
    with pytest.raises(PackageError, match=r"'layers' says nothing, .* 'node blocks\.1\.attn/moh'"):
        OnnxPackage.open(package.root)


def without_inputs(model: onnx.ModelProto) -> None:
    (attention,) = (node for node in model.graph.node if node.op_type == "MoHAttention")
    del attention.input[:]


def without_heads(model: onnx.ModelProto) -> None:
    (attention,) = (node for node in model.graph.node if node.op_type == "MoHAttention")
    del attention.attribute[:]


def test_vocabulary_is_that_of_the_recorded_logits():
    logits = {"logits": np.zeros((2, 3, 8), np.float32)}
    recorded = [replace(vectors(), outputs=logits)]
    for size in (8, 9):
        about = replace(MANIFEST, text_generation=TextGeneration(size))
        facts = {item.name: item for item in recorded_facts(about, recorded)}
        found = facts["text_generation.vocab_size"]
        assert (found.said == found.shown) is (size == 8)


@pytest.mark.parametrize("damage", [without_inputs, without_heads])
def test_damaged_graph_is_refused(tmp_path: Path, damage: Callable[[onnx.ModelProto], None]):
    package = write_package(tmp_path / "package")
    change_model(package.root, damage)
    with pytest.raises(PackageError):
        OnnxPackage.open(package.root)


def test_graph_that_runs_in_a_circle_is_read_to_an_end(tmp_path: Path):
    def change(model: onnx.ModelProto) -> None:
        model.graph.node.append(onnx.helper.make_node("Identity", ["round"], ["round"]))
        (attention,) = (node for node in model.graph.node if node.op_type == "MoHAttention")
        attention.input[0] = "round"

    package = write_package(tmp_path / "package")
    change_model(package.root, change)
    assert OnnxPackage.open(package.root).manifest.layers  # ONNX Runtime refuses it


@pytest.mark.parametrize("kind", WRITERS)
def test_true_manifest_is_read(written: Callable[[str], OnnxPackage], kind: str):
    package = written(kind)
    assert OnnxPackage.open(package.root).manifest == package.manifest
