"""The text example in a short form: three steps of training, exported, and its text foretold."""

import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest

from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.text.tokenizer import Tokenizer
from tests.exporting import prove_in_this_process
from tests.kept_builds import ROOT
from tests.nightly import nightly
from tests.text.export_small import export_directory

TEXT = ROOT / "examples" / "text"
MODULES = ("corpus", "modeling_moh_text", "perplexity", "text_demo", "train_text")


@pytest.fixture(scope="module")
def example(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """The example's modules, which like any script import their neighbours by bare names; and what
    they make: a model, its directory, and its package."""
    root = tmp_path_factory.mktemp("text-example")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(str(TEXT))
        modules = {name: import_module(name) for name in MODULES}
        # One layer of the three: exporting all takes as long again for each.
        monkeypatch.setitem(modules["train_text"].CONFIG, "num_hidden_layers", 1)
        training, held_out = modules["corpus"].load_text()
        model = modules["train_text"].train(training, steps=3)
        modules["train_text"].write_directory(model, root / "model")
        prove_in_this_process(monkeypatch)
        package = export_directory(root / "model", root / "package")
        rows = modules["corpus"].windows(held_out, 33, 2)
        yield SimpleNamespace(**modules, model=model, root=root, package=package, rows=rows)
    for name in MODULES:
        sys.modules.pop(name, None)


def test_package_foretells_as_the_model_does(example):
    before = example.perplexity.of_model(example.model, example.rows)
    after = example.perplexity.of_package(example.package.root, example.rows)
    assert 1 < before < 256
    assert after == pytest.approx(before, rel=1e-5)


def test_every_attention_is_an_op(example):
    layers = example.package.manifest.layers
    assert [layer.replaced for layer in layers] == [True]
    assert {(layer.num_heads, layer.num_shared_heads) for layer in layers} == {(8, 2)}


def test_perplexity_is_that_of_chances(example):
    """A fair die of 256 sides surprises by 256; one that is sure and right by 1."""
    tokens = np.array([[3, 200]])
    assert example.perplexity._perplexity(np.zeros((1, 2, 256)), tokens) == pytest.approx(256)
    sure = np.full((1, 2, 256), -1e3)
    sure[0, [0, 1], [3, 200]] = 0
    assert example.perplexity._perplexity(sure, tokens) == pytest.approx(1)


def test_held_out_text_is_not_in_the_training(example):
    training, held_out = (bytes(part.astype(np.uint8)) for part in example.corpus.load_text())
    assert len(held_out) > 20_000
    for start in range(0, len(held_out) - 2000, len(held_out) // 10):
        assert held_out[start : start + 2000] not in training


def test_each_topic_ends_with_the_byte_that_ends_a_text(example):
    about = example.package.manifest.text_generation
    assert about.eos_token_ids == (example.corpus.END,)
    for part, topics in zip(example.corpus.load_text(), (70, 7), strict=True):
        ends = np.flatnonzero(part == example.corpus.END)
        assert len(ends) >= topics
        assert ends[-1] == len(part) - 1
        assert np.diff(ends).min() > 1  # no topic is empty, none holds the byte


def test_tokens_are_bytes(example):
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    tokenizer = Tokenizer.of(OnnxPackage.open(example.package.root))
    text = " naïve ☕\n\t𝄞 \x00"
    assert tokenizer.tokens_of(text) == list(text.encode())
    assert tokenizer.text_of(list(text.encode())) == text


@pytest.mark.parametrize(
    ("form", "value", "code"),
    [("float32", 5.0, 0), ("float32", 5.01, 1), ("int8", 4.5, 1), ("int4", 5.6, 1)],
)
def test_verdict(example, capsys, form: str, value: float, code: int):
    demo = example.text_demo
    found = {demo.MODEL: 5.0, "float32": 5.0, "int8": 5.01, "int4": 5.2, form: value}
    assert demo.verdict(found) == code
    assert (f"in {form} the perplexity is {value:.4f}" in capsys.readouterr().err) == bool(code)


def test_verdict_of_no_number_is_bad(example):
    demo = example.text_demo
    found = {demo.MODEL: 5.0, "float32": 5.0, "int8": float("nan"), "int4": 5.0}
    assert demo.verdict(found) == 1


@nightly
def test_demo_succeeds(tmp_path):
    command = [sys.executable, str(TEXT / "text_demo.py"), "--steps", "40"]
    demo = subprocess.run(
        [*command, "--work-dir", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert "the model in PyTorch" in demo.stdout
    assert (tmp_path / "genai" / "genai_config.json").is_file()
