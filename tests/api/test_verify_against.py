"""What `against` names that needs no PyTorch."""

import json
import xml.etree.ElementTree as xml
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import moh_deploy
from moh_deploy.errors import ConfigError, PackageError
from moh_deploy.package import OnnxPackage, PackageWriter, TensorInfo
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.system.bounded_json import to_json_text
from moh_deploy.system.npz import Array, write_npz
from moh_deploy.validate.reference.reference import expected_outputs
from moh_deploy.validate.reference.samples import Sample
from tests.cli.run_cli import Cli
from tests.handmade_package import MANIFEST, model, vectors, write_package
from tests.kernel_library import required_library
from tests.report.json_schema import validate_answer
from tests.report.shown import as_junit, as_markdown
from tests.two_layers import write_two_layers


def write_model(path: Path, *, inputs: str = "x", output: str = "y", scale: float = 1.0) -> Path:
    """Write a plain ONNX model, its input and output called otherwise."""
    content = model(scale=scale)
    names = {"x": inputs, "y": output}
    for node in content.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*content.graph.input, *content.graph.output):
        value.name = names[value.name]
    onnx.save(content, path)
    return path


def test_function_bodies_are_compared_on_recorded_inputs(tmp_path: Path):
    # Wrong, but the same with and without optimisations.
    write_package(tmp_path / "package", scale=1.5)
    report = moh_deploy.verify(tmp_path / "package", against=["functions"])
    assert report.equal
    assert report.routing_agreement == 1.0
    assert "function bodies" in report.reference
    assert report.subject == f"package {tmp_path / 'package'}"


def test_function_bodies_are_compared_with_kernels(tmp_path: Path):
    required_library()
    write_package(tmp_path / "package")
    report = moh_deploy.verify(tmp_path / "package", kernels="off", against=["kernels"])
    assert report.equal
    assert report.reference == "the package with kernels"
    assert (report.kernel_nodes, report.function_nodes) == (0, 1)


def test_margins_of_function_bodies_are_those_of_their_own_scores(tmp_path: Path):
    write_two_layers(tmp_path / "package")
    write_npz(tmp_path / "user.npz", vectors(batch=5, seed=9).inputs)
    report = moh_deploy.verify(tmp_path / "package", inputs=[tmp_path / "user.npz"], kernels="off")
    unknown, known = [layer.smallest_margin for layer in report.layers]
    assert unknown == np.inf  # no MoHRouter makes these gates
    assert known is not None
    assert 0 < known < 1


def test_margins_that_only_the_recorded_run_knows_are_taken_from_there(tmp_path: Path):
    recorded = replace(vectors(), margins=(np.full((2, 3), 0.25, np.float32),))
    with PackageWriter(tmp_path / "package") as writer:
        onnx.save(model(), writer.path("model.onnx"))
        writer.finish(MANIFEST, [recorded])
    report = moh_deploy.verify(tmp_path / "package", against=["functions"], kernels="off")
    assert report.layers[0].smallest_margin == 0.25


def test_another_package_is_compared_with_its_routing(tmp_path: Path):
    write_package(tmp_path / "package")
    write_package(tmp_path / "other")
    report = moh_deploy.verify(tmp_path / "package", against=[tmp_path / "other"])
    assert report.equal
    assert report.has_routing
    write_package(tmp_path / "wrong", scale=1.5)
    assert not moh_deploy.verify(tmp_path / "package", against=[tmp_path / "wrong"]).equal


def test_package_of_other_layers_is_compared_by_outputs_and_said_so(tmp_path: Path):
    write_package(tmp_path / "package", with_layer=False)
    write_package(tmp_path / "other")
    report = moh_deploy.verify(tmp_path / "package", against=[tmp_path / "other"])
    assert not report.has_routing
    assert report.notes[0].endswith("other has 1 MoH layer, this one 0: routing is not compared.")


def test_outputs_that_a_file_does_not_hold_are_said_to_be_left_out(tmp_path: Path):
    package = write_package(tmp_path / "package")
    two = (*package.manifest.outputs, replace(package.manifest.outputs[0], name="cache"))
    wider = replace(package, manifest=replace(package.manifest, outputs=two))
    samples = [Sample(vectors(seed=seed), "mine", tmp_path / "mine.npz") for seed in (1, 2)]
    reference = expected_outputs([Path(f"{number}.npz") for number in range(12)])
    assert reference.name.endswith("8.npz, 9.npz and 2 more")
    answers = reference.answers(wider, samples)
    assert answers.notes == (
        f"{tmp_path / 'mine.npz'} holds no expected output 'cache': not compared.",
    )
    assert reference.answers(package, samples).notes == ()


def test_package_of_another_checkpoint_is_said_to_be(tmp_path: Path):
    for name, digest in (("package", "a" * 64), ("other", "b" * 64)):
        with PackageWriter(tmp_path / name) as writer:
            onnx.save(model(), writer.path("model.onnx"))
            writer.finish(replace(MANIFEST, checkpoint_sha256=digest), [vectors()])
    report = moh_deploy.verify(tmp_path / "package", against=[tmp_path / "other", "functions"])
    assert report.comparisons[0].notes == (
        f"package {tmp_path / 'other'} was made from another checkpoint.",
    )
    assert report.comparisons[1].notes == ()


class OneBuffer:
    """A runner that returns the same memory each time, as those of engines do."""

    name = "one buffer"

    def __init__(self, root: Path) -> None:
        self.session, self.buffer = open_runner(OnnxPackage.open(root)), np.zeros(2**10, "f4")
        self.is_active = False

    def activate(self) -> None:
        self.is_active = True

    def deactivate(self) -> None:
        self.is_active = False

    def get_input_metadata(self, use_numpy_dtypes: bool) -> dict[str, TensorInfo]:
        return {item.name: item for item in MANIFEST.inputs}

    def infer(self, feed_dict: Mapping[str, Array]) -> dict[str, Array]:
        assert self.is_active
        found = self.session.run(feed_dict)["y"]
        self.buffer[: found.size] = found.ravel()
        return {"y": self.buffer[: found.size].reshape(found.shape)}


def test_runner_that_uses_its_memory_again_is_a_reference_and_is_deactivated(tmp_path: Path):
    root = write_package(tmp_path / "package").root
    for seed in (1, 2):
        write_npz(tmp_path / f"{seed}.npz", vectors(seed=seed).inputs)
    runner = OneBuffer(root)
    inputs = [tmp_path / "1.npz", tmp_path / "2.npz"]
    moh_deploy.verify(root, inputs=inputs, against=[runner]).raise_if_unequal()
    assert not runner.is_active


@pytest.mark.parametrize(("inputs", "output"), [("x", "y"), ("images", "logits")])
def test_plain_model_is_matched_by_name_or_position(tmp_path: Path, inputs: str, output: str):
    write_package(tmp_path / "package")
    right = write_model(tmp_path / "right.onnx", inputs=inputs, output=output)
    report = moh_deploy.verify(tmp_path / "package", against=[right])
    assert report.equal
    assert report.routing_agreement is None
    for against in ([right, "functions"], ["functions", right]):
        report = moh_deploy.verify(tmp_path / "package", against=against)
        assert report.routing_agreement == 1.0
    wrong = write_model(tmp_path / "wrong.onnx", inputs=inputs, output=output, scale=1.01)
    assert not moh_deploy.verify(tmp_path / "package", against=[wrong]).equal


def test_model_with_other_inputs_is_refused(tmp_path: Path):
    write_package(tmp_path / "package")
    content = model()
    content.graph.input.append(
        helper.make_tensor_value_info("mask", onnx.TensorProto.FLOAT, ["batch"])
    )
    onnx.save(content, tmp_path / "other.onnx")
    with pytest.raises(
        ConfigError, match=r"its input 'mask' is not among .* 'x', and its inputs 'x', "
    ):
        moh_deploy.verify(tmp_path / "package", against=[tmp_path / "other.onnx"])


def test_model_of_another_input_dtype_is_refused_and_named(tmp_path: Path):
    write_package(tmp_path / "package")
    content = model()
    content.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    content.graph.node.insert(
        0, helper.make_node("Cast", ["x"], ["wide"], to=onnx.TensorProto.FLOAT)
    )
    for node in content.graph.node[1:]:
        node.input[:] = ["wide" if name == "x" else name for name in node.input]
    onnx.save(content, tmp_path / "half.onnx")
    with pytest.raises(ConfigError, match=r"half\.onnx does not take the inputs .* dtype float16"):
        moh_deploy.verify(tmp_path / "package", against=[tmp_path / "half.onnx"])


def test_order_of_references_is_that_of_the_report_and_changes_nothing_else(tmp_path: Path):
    write_package(tmp_path / "package")
    write_package(tmp_path / "wrong", scale=1.5)
    against = ["functions", str(tmp_path / "wrong"), "recorded"]
    there = moh_deploy.verify(tmp_path / "package", against=against)
    back = moh_deploy.verify(tmp_path / "package", against=against[::-1])
    assert [comparison.equal for comparison in there.comparisons] == [True, False, True]
    assert back.comparisons == there.comparisons[::-1]
    assert not there.equal
    assert not back.equal


def test_one_difference_among_several_is_told_by_its_reference(tmp_path: Path):
    write_package(tmp_path / "package", scale=1.5)
    report = moh_deploy.verify(tmp_path / "package", against=["functions", "recorded"])
    assert report.reasons
    assert all(reason.startswith("against vectors recorded from") for reason in report.reasons)


def test_reports_show_several_comparisons_apart(tmp_path: Path):
    write_package(tmp_path / "package", scale=1.5)
    report = moh_deploy.verify(tmp_path / "package", against=["functions", "recorded"])
    content = json.loads(to_json_text({"package": "m", **report.to_json()}))
    validate_answer("verify", content)
    assert [comparison["equal"] for comparison in content["comparisons"]] == [True, False]
    assert {output["reference"] for output in content["outputs"]} == {
        comparison["reference"] for comparison in content["comparisons"]
    }
    suites = xml.fromstring(as_junit(report, "m").encode())
    verdicts = [suite.find("testcase[@name='verdict']/failure") is None for suite in suites]
    assert verdicts == [True, False]
    text = as_markdown(report, "m")
    assert text.startswith("### m: NOT EQUAL\n")
    assert "#### Against vectors recorded from the original model: NOT EQUAL\n" in text


def test_comparison_without_data_fails_beside_one_with(tmp_path: Path):
    write_package(tmp_path / "package", sets=())
    write_npz(tmp_path / "user.npz", vectors(seed=9).inputs)
    report = moh_deploy.verify(tmp_path / "package", against=["functions", "recorded"])
    assert [comparison.equal for comparison in report.comparisons] == [False, False]
    with pytest.raises(ConfigError, match=r"user\.npz holds no expected outputs: no member is"):
        moh_deploy.verify(
            tmp_path / "package", inputs=[tmp_path / "user.npz"], against=["recorded"]
        )


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("function", "against is function, which is not found"),
        ("missing.pt", "against is missing.pt, which is not found"),
        ("MODEL", r"model\.pt, a checkpoint, which needs PyTorch to run"),
        ("kernels", "itself runs with kernels where there are any"),
        ("PACKAGE", "which is itself what is verified: it is equal to itself"),
        ("FOLDER", r"manifest\.json"),
        ("functions functions", r"against names function bodies .* twice"),
    ],
)
def test_what_names_nothing_to_compare_with_is_refused(tmp_path: Path, named: str, message: str):
    write_package(tmp_path / "package")
    (tmp_path / "model.pt").write_bytes(b"")
    paths = {"PACKAGE": tmp_path / "package", "MODEL": tmp_path / "model.pt", "FOLDER": tmp_path}
    against = [paths.get(name, name) for name in named.split()]
    with pytest.raises((ConfigError, PackageError), match=message):
        moh_deploy.verify(tmp_path / "package", against=against)


def test_folder_of_inputs_is_taken_by_name_and_an_empty_one_refused(tmp_path: Path):
    write_package(tmp_path / "package")
    (tmp_path / "inputs").mkdir()
    with pytest.raises(ConfigError, match="inputs has no npz files"):
        moh_deploy.verify(tmp_path / "package", inputs=[tmp_path / "inputs"])
    for seed, name in enumerate(["b", "a"]):
        write_npz(tmp_path / "inputs" / f"{name}.npz", vectors(seed=seed).inputs)
    (tmp_path / "inputs" / "notes.txt").write_text("not an input")
    report = moh_deploy.verify(tmp_path / "package", inputs=[tmp_path / "inputs"])
    assert [output.vectors for output in report.outputs] == [
        "a.npz (batch=2, seq=3)",
        "b.npz (batch=2, seq=3)",
    ]


def test_command_says_which_comparison_failed_and_ends_with_1(tmp_path: Path, capsys):
    root, cli = write_package(tmp_path / "package", scale=1.5).root, Cli(capsys)
    done = cli("verify", root, "--against", "functions", "--against", "recorded")
    assert done.exit_code == 1
    assert "NOT EQUAL: 1 of 2 comparisons agree" in done.out
    assert "against vectors recorded from the original model: output 'y'" in done.err
    unloaded = cli("verify", root, "--factory", "models:build")
    assert unloaded.exit_code == 2
    assert "--factory says how a checkpoint is loaded, but --against names none" in unloaded.err
