"""Try the kernel library in several versions of ONNX Runtime, each in an environment of its own.

    PYTHONPATH=. python tools/test_runtimes.py build/runtimes --versions 1.18.1 --library path/to.so

Run it with an interpreter that has moh-deploy, and for which the versions have wheels. Prints a
table. Fails where a version from 1.18 on does not run every case on a kernel, or an older one does
not refuse the library.
"""

import argparse
import json
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx.helper import make_node, make_opsetid

from moh_deploy import native
from moh_deploy.ops import OPS
from moh_deploy.ops.cases import Case
from moh_deploy.ops.onnx_schema import single_node_model
from moh_deploy.runtime import kernel_use as ort_kernels
from tests.ops.cases import OP_CASES

VERSIONS = ("1.16.3", "1.18.1", "1.20.1", "1.23.2", "newest")
OLDEST = (1, 17)  # whose functions the library needs; models of opset 18 with functions need 1.18
NUMPY_2_FROM = (1, 19)
CASES = {
    "MoHAttention": ("plain_rank3", "plain_rank4", "grouped_rank4", "bool_mask_causal"),
    "MoHOutputProjection": ("plain", "no_bias", "shared_heads"),
    "MoHQueryProjection": ("all_open", "all_open_no_bias"),
    "MoHRouter": ("two_stage", "two_stage_odd", "tied_logits"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where cases and environments are made")
    parser.add_argument("--versions", nargs="+", default=VERSIONS)
    parser.add_argument("--library", type=Path, default=native.kernel_library())
    options = parser.parse_args()
    if options.library is None:
        sys.exit(f"no kernel library: {native.why_no_library()}")
    cases = options.folder / "cases"
    write_cases(cases, ort_kernels.instruction_sets(options.library))
    good = True
    for version in options.versions:
        found = probe(options.folder / version, version, cases, options.library.resolve())
        verdict = judge(found)
        good = good and verdict.startswith("ok")
        print(f"{found['version']:10} {verdict}", flush=True)
    sys.exit(not good)


def write_cases(folder: Path, instruction_sets: list[str]) -> None:
    """Write each case as a model and its arrays, so that they can be run without moh-deploy."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "instruction_sets.json").write_text(json.dumps(instruction_sets))
    for case in _cases():
        name = f"{case.op}_{case.name}_{case.dtype}"
        onnx.save(_float32_model(case), folder / f"{name}.onnx")
        reference = OPS[case.op].reference(case.inputs(), case.attributes)[0]
        bound = case.tolerance.absolute + case.tolerance.relative * np.abs(reference)
        np.savez(folder / f"{name}.npz", **_inputs(case), reference=reference, bound=bound)


def _cases() -> Iterator[Case]:
    for op, names in CASES.items():
        yield from (case for case in OP_CASES[op] if case.name in names)


def _inputs(case: Case) -> dict[str, np.ndarray]:
    names = (given.name for given in OPS[case.op].inputs)
    return {
        name: array if array.dtype == bool else array.astype(np.float32)
        for name, array in zip(names, case.inputs(), strict=False)
        if array is not None
    }


def _float32_model(case: Case) -> onnx.ModelProto:
    """The model of a case between casts: not every version takes bfloat16 from Python."""
    model = single_node_model(case.op, case.input_types(), case.attributes)
    if case.dtype == "float32":
        return model
    graph = model.graph
    (node,) = graph.node
    element = graph.output[0].type.tensor_type.elem_type
    casts = []
    for given in graph.input:
        if given.type.tensor_type.elem_type != element:
            continue
        given.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        casts.append(make_node("Cast", [given.name], [f"{given.name}_cast"], to=element))
        node.input[:] = [f"{n}_cast" if n == given.name else n for n in node.input]
    output = graph.output[0]
    output.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    node.output[:] = [f"{output.name}_cast"]
    back = make_node("Cast", list(node.output), [output.name], to=onnx.TensorProto.FLOAT)
    nodes = [*casts, node, back]
    made = onnx.helper.make_graph(nodes, graph.name, graph.input, graph.output)
    opsets = [make_opsetid(opset.domain, opset.version) for opset in model.opset_import]
    return onnx.helper.make_model(
        made, opset_imports=opsets, functions=model.functions, ir_version=model.ir_version
    )


def probe(environment: Path, version: str, cases: Path, library: Path) -> dict:
    """Run the cases in an environment with that version, made where it is missing."""
    python = environment / "bin" / "python"
    if not python.exists():
        venv.create(environment, with_pip=True)
    wanted = "onnxruntime" if version == "newest" else f"onnxruntime=={version}"
    old = version != "newest" and _number(version) < NUMPY_2_FROM
    install = [wanted, "numpy<2" if old else "numpy>=2"]
    subprocess.run([python, "-m", "pip", "install", "-q", "--upgrade", *install], check=True)
    script = Path(__file__).with_name("runtime_probe.py")
    ran = subprocess.run(
        [python, script, cases, library], check=False, stdout=subprocess.PIPE, text=True
    )
    if ran.returncode:
        return {"version": version, "crashed": ran.returncode}
    return json.loads(ran.stdout.splitlines()[-1])


def judge(found: dict) -> str:
    """Return `ok` or `WRONG`, and what was found."""
    if "crashed" in found:
        return f"WRONG  ended with status {found['crashed']}"
    if "refused" in found:
        right = _number(found["version"]) < OLDEST
        return f"{'ok' if right else 'WRONG'}  refused: {found['refused']}"
    if _number(found["version"]) < OLDEST:
        return "WRONG  not refused"
    by_set = {name: result for name, result in found.items() if name != "version"}
    problems = [problem for result in by_set.values() for problem in result["problems"]]
    counts = ", ".join(f"{name} {result['cases']}" for name, result in by_set.items())
    return f"WRONG  {'; '.join(problems)}" if problems else f"ok  cases on a kernel: {counts}"


def _number(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


if __name__ == "__main__":
    main()
