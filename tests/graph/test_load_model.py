from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import parser
from onnx.reference import ReferenceEvaluator

import moh_deploy
from moh_deploy.errors import PackageError
from moh_deploy.graph.load_model import to_standard_operators
from moh_deploy.package import MODEL_NAME, OnnxPackage, PackageWriter
from tests.exporting import export, prove_in_this_process
from tests.small_moh import build

HEAD = '<ir_version: 10, opset_import: ["" : 20, "moh" : 1, "moh.dense" : 1]>'

# outer(x) = 2 * x + x^2 by way of a function within a function, whose names are those of the graph.
NESTED = f"""
    {HEAD}
    g (float[N] x) => (float[N] y) {{
        middle = moh.Outer <factor = 2.0> (x)
        y = moh.Outer (middle)
    }}
    <domain: "moh", opset_import: ["" : 20, "moh.dense" : 1]>
    Outer <factor: float = 3.0> (a) => (b) {{
        middle = moh.dense.Inner <power: float = @factor> (a)
        y = Mul (a, a)
        b = Add (middle, y)
    }}
    <domain: "moh.dense", opset_import: ["" : 20]>
    Inner <power> (a) => (b) {{
        y = Constant <value_float: float = @power> ()
        b = Mul (a, y)
    }}
"""


def in_standard_operators(text: str) -> onnx.ModelProto:
    model = ir.from_proto(parser.parse_model(text))
    assert to_standard_operators(model)
    written = ir.to_proto(model)
    onnx.checker.check_model(written, full_check=True)
    assert not written.functions
    assert [(item.domain, item.version) for item in written.opset_import] == [("", 20)]
    return written


def run(model: onnx.ModelProto, *inputs: np.ndarray) -> np.ndarray:
    names = [value.name for value in model.graph.input]
    (result,) = ReferenceEvaluator(model).run(None, dict(zip(names, inputs, strict=True)))
    return result


def test_bodies_within_bodies_keep_attributes_defaults_and_names_apart():
    x = np.float32([1, -2, 3])
    middle = 2 * x + x * x
    np.testing.assert_array_equal(
        run(in_standard_operators(NESTED), x), 3 * middle + middle * middle
    )


@pytest.mark.parametrize("choose", [True, False])
def test_nodes_in_branches_are_written_out_and_clash_with_no_name_around_them(choose: bool):
    text = f"""
        {HEAD}
        g (float[N] x, bool choose) => (float[N] y) {{
            first = moh.Twice (x)
            y = If (choose) <
                then_branch = yes () => (float[N] inner) {{
                    made = Mul (x, x)
                    inner = moh.Twice (made)
                }},
                else_branch = no () => (float[N] other) {{ other = Identity (first) }}
            >
        }}
        <domain: "moh", opset_import: ["" : 20]>
        Twice (a) => (b) {{
            made = Constant <value_float = 2.0> ()
            b = Mul (a, made)
        }}
    """
    model, x = in_standard_operators(text), np.float32([1, -2, 3])
    expected = 2 * x * x if choose else 2 * x
    np.testing.assert_array_equal(run(model, x, np.bool_(choose)), expected)
    # Names are unique in a model, branches included: many readers know one table of them.
    (branch,) = [node for node in model.graph.node if node.op_type == "If"]
    inner = {name for a in branch.attribute for node in a.g.node for name in node.output}
    assert not inner & {name for node in model.graph.node for name in node.output}


def test_metadata_and_values_that_nothing_reads_stay():
    text = NESTED.replace("y = moh.Outer (middle)", "y = moh.Outer (middle) gates = Exp (middle)")
    text = text.replace("ir_version: 10,", 'ir_version: 10, metadata_props: ["made": "here"],')
    found = in_standard_operators(text)
    assert {"middle", "gates"} <= {name for node in found.graph.node for name in node.output}
    assert [(item.key, item.value) for item in found.metadata_props] == [("made", "here")]


def test_model_of_standard_operators_stays_as_it_is():
    text = (
        '<ir_version: 10, opset_import: ["" : 20]> g (float[N] x) => (float[N] y) {[e] y = Exp (x)}'
    )
    model = ir.from_proto(parser.parse_model(text))
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert not to_standard_operators(model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("y = Mul (a, a)", "y = far.Square (a)", r"no function body: far::Square \(2\)"),
        (
            '"moh.dense", opset_import: ["" : 20]',
            '"moh.dense", opset_import: ["" : 18]',
            "Opset mismatch",
        ),
        ("y = Mul (a, a)", "y = moh.Outer (a)", "Cyclic dependency"),
    ],
)
def test_what_cannot_be_written_out_is_refused(old: str, new: str, message: str):
    assert old in NESTED
    model = ir.from_proto(parser.parse_model(NESTED.replace(old, new)))
    with pytest.raises(PackageError, match=message):
        to_standard_operators(model)


# What is handed to others says nothing of the author's machine and source.


TRACE = "pkg.torch.onnx.stack_trace"


@pytest.fixture
def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OnnxPackage:
    prove_in_this_process(monkeypatch)
    export(build(), tmp_path / "package")
    return OnnxPackage.open(tmp_path / "package")


def assert_nothing_of_the_author(folder: Path) -> None:
    paths = [str(Path(__file__).parent.parent).encode(), str(Path(moh_deploy.__file__)).encode()]
    for file in (path for path in folder.rglob("*") if path.is_file()):
        content = file.read_bytes()
        assert not [item for item in (*paths, b"F.scaled_dot_product_attention") if item in content]


def test_package_has_no_paths_and_lines_of_source_nor_has_what_is_made_of_an_earlier_one(
    exported: OnnxPackage, tmp_path: Path
):
    assert_nothing_of_the_author(exported.root)
    model = onnx.load(exported.model_path)
    for node in model.graph.node:
        node.metadata_props.add(key=TRACE, value=f'File "{__file__}", line 1, in forward')
    with PackageWriter(tmp_path / "earlier") as writer:
        onnx.save(model, writer.path(MODEL_NAME))
        earlier = writer.finish(exported.manifest, exported.vectors, exported.corpus)
    made = tmp_path / "made"
    made.mkdir()
    moh_deploy.precision(earlier.root, to="float16", output=made / "half")
    moh_deploy.inline(earlier.root, output=made / "flat.onnx")
    assert_nothing_of_the_author(made)
