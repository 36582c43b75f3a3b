"""Every reader of a file that others can write."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from hypothesis import strategies as st
from onnx import parser

from moh_deploy.config.export_config import load_config
from moh_deploy.decision.plan import read_plan
from moh_deploy.errors import ConfigError
from moh_deploy.frontend.load.decoder import Decoder, check_config, text_generation
from moh_deploy.frontend.load.model_directory import auto_class, read_model_directory
from moh_deploy.frontend.load.onnx_graph.file import read_onnx
from moh_deploy.graph.load_model import load_ir
from moh_deploy.package import OnnxPackage
from moh_deploy.package.vectors import CORPUS_NAME, CorpusSample, MinedToken, write_corpus
from moh_deploy.report.baseline.ratchet import read_baseline
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.prepared_model import prepare_model
from moh_deploy.runtime.tensorrt.engine_dir import is_engine_dir, read_engine_dir
from moh_deploy.serving.drift.judge import LiveCounts, judge_window
from moh_deploy.serving.drift.live import windows_of_dump
from moh_deploy.serving.drift.reference import (
    RoutingReference,
    profile_of,
    read_reference,
    write_reference,
)
from moh_deploy.serving.drift.report import WatchReport
from moh_deploy.serving.metrics import Family, Series, exposition, parse_text
from moh_deploy.serving.triton.check import examine_bundle
from moh_deploy.system.npz import map_npz, read_npz
from moh_deploy.validate.accuracy.reading import read_labels
from moh_deploy.validate.compare.policy import read_policy
from tests.fuzz.changed_arrays import archive_changes, array_changes, change_archive, change_npy
from tests.fuzz.changed_bytes import byte_changes, change_bytes
from tests.fuzz.changed_model import change_model, field_changes
from tests.fuzz.changed_values import change_values, json_text, value_changes
from tests.fuzz.changed_yaml import changed_yaml
from tests.fuzz.target import Prepared, Target
from tests.handmade_package import vectors, write_package
from tests.repaired_package import digest_of, replace_file, rewrite_manifest
from tests.runtime.tensorrt.engines import write_engine
from tests.serving.drift.traffic import requests, window
from tests.serving.triton.bundles import bundle_of_handmade
from tests.text.model_directories import write_plain_torch


def manifest(folder: Path) -> Prepared:
    """Values of a manifest, its digest repaired; and its text."""
    root = write_package(folder / "package").root
    path = root / "manifest.json"
    content = json.loads(path.read_text())
    content.pop("sha256")
    # A range of another choice would need an If in the model.
    content["layers"][0]["ranges"] = [{"size": "batch*seq", "at_most": 4, "choice": "sparse"}]
    content["layers"][0]["choice"] = "sparse"
    content["dim_ranges"] = {"seq": [2, None]}
    content["text_generation"] = {
        "vocab_size": 9,
        "context_length": 64,
        "eos_token_ids": [2],
        "pad_token_id": 0,
    }
    content["tuning"] = {
        "source": "measured",
        "machine": "m",
        "runtime": "r",
        "threads": 1,
        "clock": "CPU",
        "sizes": [{"batch": 2, "seq": 3}],
        "weights": [1.0],
        "layer_ms": [[{"dense": 1.0, "sparse": 2.0}]],
        "model_ms": [{"dense": 1.0}],
    }

    def valued(changes: Any) -> bytes:
        changed = change_values(content, changes)
        if isinstance(changed, dict):
            changed = {**changed, "sha256": digest_of(changed)}
        return json_text(changed).encode()

    def read(text: bytes) -> None:
        path.write_bytes(text)
        OnnxPackage.open(root)

    text = valued([])
    read(text)
    raw = byte_changes.map(lambda changes: change_bytes(text, changes))
    return Prepared(value_changes.map(valued) | raw, read)


def recorded(folder: Path) -> Prepared:
    """Vectors of a package, its digests repaired."""
    root = write_package(folder / "package", sets=(vectors(), vectors(batch=3))).root
    arrays = read_npz(root / "vectors.npz", error=ConfigError)

    def read(change: Any) -> None:
        replace_file(root, "vectors.npz", change_archive(arrays, change))
        OnnxPackage.open(root)

    return Prepared(archive_changes, read)


def corpus(folder: Path) -> Prepared:
    """The regression corpus of a package, its digests repaired."""
    root = write_package(folder / "package").root
    sample = CorpusSample(vectors(), (MinedToken(0, (0, 1), 0.5), MinedToken(0, (1, 2), 0.7)))
    write_corpus(root / CORPUS_NAME, [sample])
    arrays = read_npz(root / CORPUS_NAME, error=ConfigError)

    def read(change: Any) -> None:
        replace_file(root, CORPUS_NAME, change_archive(arrays, change))
        for item in OnnxPackage.open(root).corpus:
            item.digest()

    return Prepared(archive_changes, read)


def model(folder: Path) -> Prepared:
    """The model of a package, its digest repaired."""
    root = write_package(folder / "package", external_data=True).root
    found = onnx.load(root / "model.onnx", load_external_data=False)
    content = found.SerializeToString()

    def read(changed: bytes) -> None:
        replace_file(root, "model.onnx", changed)
        package = OnnxPackage.open(root)
        prepare_model(package, Variant(extra_outputs=package.gate_names))
        load_ir(package)

    structured = field_changes.map(lambda item: change_model(found, item).SerializeToString())
    raw = byte_changes.map(lambda changes: change_bytes(content, changes))
    return Prepared(structured | structured | raw, read)


def onnx_file(folder: Path) -> Prepared:
    """An ONNX file that is to be exported, and that has weights in another one."""
    path = folder / "model.onnx"
    found = parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 20]> g (float[n, 4] x) => (float[n, 4] y) {
            half = Constant <value_float = 0.5> ()
            c = Constant <value_ints = [0, 4]> ()
            z = MatMul (x, w)
            s = Mul (z, half)
            y = Reshape (s, c)
        }"""
    )
    weight = onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    found.graph.initializer.append(weight)
    found.functions.add(name="F", domain="f").opset_import.add(domain="", version=20)
    onnx.save(found, path, save_as_external_data=True, location="weights", size_threshold=0)
    content = found.SerializeToString()

    def read(changed: bytes) -> None:
        path.write_bytes(changed)
        read_onnx(path)

    structured = field_changes.map(lambda item: change_model(found, item).SerializeToString())
    raw = byte_changes.map(lambda changes: change_bytes(content, changes))
    return Prepared(structured | structured | raw, read)


def files(folder: Path) -> Prepared:
    """Names of files that a manifest lists, some of them there."""
    root = write_package(folder / "package").root
    listed = json.loads((root / "manifest.json").read_text())["files"]
    names = st.sampled_from(
        [
            "..",
            ".",
            "",
            "a/b",
            "/etc/passwd",
            "manifest.json",
            "corpus.npz",
            "x" * 300,
            "\ud800",
            "a\0b",
            "model.onnx.data",
            "é",
        ]
    ) | st.text(max_size=5)

    def read(added: Mapping[str, str]) -> None:
        rewrite_manifest(root, lambda content: content.update(files={**listed, **added}))
        OnnxPackage.open(root)

    return Prepared(st.dictionaries(names, st.sampled_from(["0", "", "x"]), min_size=1), read)


def inputs(folder: Path) -> Prepared:
    """Arrays of a user's."""
    arrays = {"x": np.ones((2, 3, 8), np.float32), "mask": np.ones((2, 3), bool)}
    path = folder / "in.npz"

    def read(change: Any) -> None:
        path.write_bytes(change_archive(arrays, change))
        try:
            for array in map_npz(path, error=ConfigError).values():
                array.tobytes()
        finally:
            read_npz(path, error=ConfigError)

    return Prepared(archive_changes, read)


def labels(folder: Path) -> Prepared:
    """Labels of a user's, in all three forms."""
    numbers = np.arange(6).reshape(3, 2)
    lines = b"id,labels\n1,3\n2,4\n3,5\n"

    def read(drawn: tuple[str, bytes]) -> None:
        suffix, content = drawn
        path = folder / f"labels.{suffix}"
        path.write_bytes(content)
        read_labels(path)

    texts = st.sampled_from(
        [
            b"1\n2\n",
            b"9" * 5000,
            b"1e999\n",
            b"nan\n",
            b'"',
            b'"\n"',
            b"\0",
            b",,\n",
            "²\n".encode(),
        ]
    )
    npy = st.builds(
        lambda a, raw: change_npy(numbers, a, raw), array_changes, st.just([]) | byte_changes
    )
    return Prepared(
        st.one_of(
            npy.map(lambda content: ("npy", content)),
            archive_changes.map(lambda item: ("npz", change_archive({"labels": numbers}, item))),
            byte_changes.map(lambda changes: ("csv", change_bytes(lines, changes))),
            st.lists(texts | st.binary(max_size=8), max_size=4).map(lambda p: ("csv", b"".join(p))),
        ),
        read,
    )


def config(folder: Path) -> Prepared:
    """An export configuration, and overrides of it."""
    document = {
        "model": {
            "factory": "m:f",
            "kwargs": {"depth": 2, "list": [1, {"a": None}]},
            "code_dirs": ["."],
        },
        "inputs": [
            {"name": "x", "shape": ["batch", "2*seq+1", 8], "dtype": "float32", "range": [-1, 1.5]},
            {"name": "ids", "shape": ["batch", "seq"], "dtype": "int64"},
        ],
        "dims": {"batch": 2, "seq": 3},
        "outputs": ["y"],
        "compute_type": "bfloat16",
    }
    path = folder / "config.yaml"
    keys = st.sampled_from(
        [
            "dims.batch",
            "model.kwargs.depth",
            "inputs.0.shape.1",
            "inputs[1].name",
            "a.b",
            "",
            "inputs.99999999999999999999",
            "inputs.²",
            "model..x",
            "dims",
            "=",
            "x" * 300,
        ]
    )
    values = changed_yaml({"a": [1, 2]}).map(lambda text: text.decode("utf-8", "replace"))
    overrides = st.lists(st.builds("{}={}".format, keys, values | st.text(max_size=5)), max_size=2)

    def read(drawn: tuple[bytes, list[str]]) -> None:
        path.write_bytes(drawn[0])
        load_config(path, drawn[1])

    return Prepared(st.tuples(changed_yaml(document), st.just([]) | overrides), read)


def model_directory(folder: Path) -> Prepared:
    """The config of a model directory, and how it generates."""
    write_plain_torch(folder / "model")
    decoder = Decoder(((2, 8, 8), (2, 8, 8)), torch.float32, 97)
    config = json.loads((folder / "model" / "config.json").read_text())
    generation = {"eos_token_id": [2, 5], "pad_token_id": 0}

    def read(changes: tuple[Any, Any]) -> None:
        values, damage = changes
        text = json_text(change_values(config, values))
        (folder / "model" / "config.json").write_text(text)
        written = change_bytes(json_text(generation).encode(), damage)
        (folder / "model" / "generation_config.json").write_bytes(written)
        found = read_model_directory(folder / "model")
        auto_class(found, "AutoModelForCausalLM")
        assert found.architecture is None or isinstance(found.architecture, str)
        check_config(found, decoder)
        text_generation(decoder, found)

    return Prepared(st.tuples(value_changes, byte_changes), read)


def policy(folder: Path) -> Prepared:
    """Tolerances of a user's."""
    figures = {"relative": 1.0e-3, "near_tie": 0.01, "reason": "because"}
    document = {
        "tolerances": {"float32": figures, "float16": {**figures, "least": 0}},
        "accuracy": {
            "top-1": {"max_drop": 0.01, "min_samples": 30, "reason": "r"},
            "m:f": {"reason": "r"},
        },
    }
    path = folder / "policy.yaml"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        read_policy(path)

    return Prepared(changed_yaml(document), read)


def comparison_plan(folder: Path) -> Prepared:
    """The plan of a comparison, and its digest."""
    document = {
        "goal": "g",
        "reference": "a",
        "arms": {
            "a": {"path": "p", "dense": True, "kernels": "off"},
            "b": {"made": {"prune": {"keep": "50%", "inputs": ["x.npz"]}}, "of": "a"},
            "c": {"url": "http://h:1", "model": "m"},
            "d": {"checkpoint": {"file": "m.pt", "code_dirs": ["."]}},
        },
        "inputs": ["x.npz"],
        "labels": "y",
        "quality": {"metric": "top-1", "may_lose": 0.1},
        "latency": {"quantile": 0.9, "at_least": 0.1},
        "sizes": [{"batch": 1}],
        "looks": 2,
    }
    path = folder / "plan.yaml"

    def read(content: bytes) -> object:
        path.write_bytes(content)
        return read_plan(path).plan.digest

    return Prepared(changed_yaml(document), read)


def baseline(folder: Path) -> Prepared:
    """The file of a ratchet."""
    document = {
        "schema_version": 1,
        "slack": {"max_abs_error": {"factor": 2.0, "plus": 0.1}},
        "verify": {"figures": {"output y": {"max_abs_error": 1e-6}}},
        "bench": {
            "machine": "m",
            "figures": {"p": {"p50": {"value": 2.0, "low": 1.0, "high": 3.0}}},
        },
    }
    path = folder / "baseline.json"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        read_baseline(path)

    text = json.dumps(document).encode()
    valued = value_changes.map(lambda item: json_text(change_values(document, item)).encode())
    return Prepared(valued | byte_changes.map(lambda item: change_bytes(text, item)), read)


def engine(folder: Path) -> Prepared:
    """The manifest of an engine directory."""
    root = write_engine(folder / "engine")
    path = root / "engine.json"
    document = json.loads(path.read_text())
    text = path.read_bytes()

    def read(content: bytes) -> None:
        path.write_bytes(content)
        if is_engine_dir(root):
            read_engine_dir(root).fits({"batch": 2, "seq": 3})

    valued = value_changes.map(lambda item: json_text(change_values(document, item)).encode())
    return Prepared(valued | byte_changes.map(lambda item: change_bytes(text, item)), read)


def bundle(folder: Path) -> Prepared:
    """What a bundle says of itself, its digest repaired, and the configuration of the server."""
    root = bundle_of_handmade(folder)
    path = root / "bundle.json"
    document, text = json.loads(path.read_text()), path.read_bytes()
    document.pop("sha256")
    config = root / "repository/handmade/config.pbtxt"
    config_text = config.read_bytes()

    def read(contents: tuple[bytes, bytes]) -> None:
        path.write_bytes(contents[0])
        config.write_bytes(contents[1])
        examine_bundle(root, folder)

    def valued(changes: Any) -> bytes:
        changed = change_values(document, changes)
        if isinstance(changed, dict):
            changed = {**changed, "sha256": digest_of(changed)}
        return json_text(changed).encode()

    return Prepared(
        st.one_of(
            st.tuples(value_changes.map(valued), st.just(config_text)),
            st.tuples(
                st.just(text), byte_changes.map(lambda item: change_bytes(config_text, item))
            ),
        ),
        read,
    )


def safetensors(folder: Path) -> Prepared:
    """Weights in safetensors: what the header says, and the bytes."""
    import torch
    from safetensors.torch import save_file

    from moh_deploy.frontend.load.fileform import detect_form, read_safetensors

    path = folder / "model.safetensors"
    save_file({"a": torch.ones(3, 4), "b": torch.ones(2, dtype=torch.int64)}, path)
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]

    def read(content: bytes) -> None:
        path.write_bytes(content)
        if detect_form(path) == "safetensors":
            read_safetensors(path)

    def valued(changes: Any) -> bytes:
        text = json_text(change_values(header, changes)).encode()
        return len(text).to_bytes(8, "little") + text + data

    raw = byte_changes.map(lambda changes: change_bytes(whole, changes))
    return Prepared(value_changes.map(valued) | raw, read)


def shards(folder: Path) -> Prepared:
    """The index of weights in several files."""
    import torch
    from safetensors.torch import save_file

    from moh_deploy.frontend.load.fileform import detect_form, list_shards, read_weights

    save_file({"a": torch.ones(2)}, folder / "1.safetensors")
    document = {
        "metadata": {"total_size": 8},
        "weight_map": {"a": "1.safetensors", "b": "1.safetensors"},
    }
    path = folder / "model.safetensors.index.json"
    text = json.dumps(document).encode()

    def read(content: bytes) -> None:
        path.write_bytes(content)
        detect_form(path)
        list_shards(path)
        read_weights(path, trust_pickle=False)

    valued = value_changes.map(lambda item: json_text(change_values(document, item)).encode())
    return Prepared(valued | byte_changes.map(lambda item: change_bytes(text, item)), read)


def program(folder: Path) -> Prepared:
    """A program of torch.export.save: its JSON, its records, and the bytes."""
    import io
    import zipfile

    import torch

    from moh_deploy.config.export_config import ModelSection
    from moh_deploy.frontend.load.load import load

    class Net(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x) + 1

    path = folder / "model.pt2"
    batch = torch.export.Dim("batch")
    saved = torch.export.export(Net(), (torch.ones(2, 3),), dynamic_shapes=({0: batch},))
    torch.export.save(saved, path)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    described = [name for name in members if name.endswith(".json")]

    def packed(name: str, content: bytes) -> bytes:
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w") as changed:
            for item, data in {**members, name: content}.items():
                changed.writestr(item, data)
        return made.getvalue()

    def valued(name: str, changes: Any) -> bytes:
        document = json.loads(members[name])
        return packed(name, json_text(change_values(document, changes)).encode())

    def read(content: bytes) -> None:
        path.write_bytes(content)
        load(path, ModelSection(), needs_example=True)

    names = st.sampled_from(list(members))
    return Prepared(
        st.one_of(
            st.builds(valued, st.sampled_from(described), value_changes),
            st.builds(lambda n, c: packed(n, change_bytes(members[n], c)), names, byte_changes),
            byte_changes.map(lambda changes: change_bytes(whole, changes)),
        ),
        read,
    )


def window_dump(folder: Path) -> Prepared:
    """A dump of a served model's window, judged by a reference."""
    dump, known = window(requests(120, seed=1)), _reference()
    path = folder / "dump.npz"
    arrays = dump.arrays()

    def read(change: Any) -> None:
        path.write_bytes(change_archive(arrays, change))
        judged = [judge_window(known, item) for item in windows_of_dump(path, known)]
        WatchReport("dump", tuple(judged), known).to_markdown()

    return Prepared(archive_changes, read)


def routing_reference(folder: Path) -> Prepared:
    """A reference of routing, by which a window is judged."""
    path = folder / "reference.json"
    write_reference(path, _reference())
    text = path.read_bytes()
    document = json.loads(text)

    def read(content: bytes) -> None:
        path.write_bytes(content)
        found = read_reference(path)
        judged = judge_window(found, LiveCounts(found.totals, 100, 0.0, 1.0))
        WatchReport("dump", (judged,), found).to_markdown()

    valued = value_changes.map(lambda item: json_text(change_values(document, item)).encode())
    return Prepared(valued | byte_changes.map(lambda item: change_bytes(text, item)), read)


def metrics_text(_: Path) -> Prepared:
    """What a server answers for metrics."""
    labels = {"model": "m", "layer": "blocks.0"}
    counter = Family("moh_routed_tokens_total", "Tokens.", "counter", (Series(labels, 3),))
    buckets = {0.1: 1, 1.0: 2, math.inf: 2}
    histogram = Family("moh_margin", "M.", "histogram", (Series(labels, 0.4, buckets),))
    text = exposition((counter, histogram))[0].encode()

    def read(content: bytes) -> None:
        parse_text(content.decode("utf-8", "replace"), "url")

    return Prepared(byte_changes.map(lambda item: change_bytes(text, item)), read)


def _reference() -> RoutingReference:
    return profile_of(window(requests(120, seed=0)), window=50, rate=0.05)


TARGETS: dict[str, Target] = {
    target.__name__: target
    for target in (
        *(manifest, files, recorded, corpus, model, onnx_file, inputs, labels),
        *(config, policy, comparison_plan, baseline, engine, bundle, safetensors, shards, program),
        *(model_directory,),
        *(window_dump, routing_reference, metrics_text),
    )
}


def fresh(folder: Path) -> Path:
    """Return an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
