import ast
import inspect
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import moh_deploy
from moh_deploy.add_ons import entry_points


def test_public_names_are_these():
    assert dir(moh_deploy) == [
        "Engine",
        "OnnxPackage",
        "bench",
        "bisect",
        "build",
        "bundle",
        "bundle_for_genai",
        "check_bundle",
        "compare",
        "cost",
        "doctor",
        "drill",
        "export",
        "generate",
        "inline",
        "inspect",
        "kernel_library",
        "load",
        "load_original",
        "optimize",
        "polygraphy_runner",
        "precision",
        "probe",
        "profile",
        "prune",
        "run",
        "serve",
        "tune",
        "tune_within",
        "verify",
        "verify_genai_bundle",
        "watch",
    ]
    assert moh_deploy.__all__ == dir(moh_deploy)


def test_type_checkers_see_all_of_them():
    stub = ast.parse(Path(moh_deploy.__file__).with_suffix(".pyi").read_text())
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    typed = {alias.asname: node.module for node in imports for alias in node.names}
    functions = entry_points("functions").items()
    added = {name: point.value.partition(":")[0] for name, point in functions}
    assert typed == moh_deploy._HOME | added


@pytest.mark.parametrize("name", [name for name in dir(moh_deploy) if name != "export"])
def test_public_name_is_what_it_says(name: str):
    assert getattr(moh_deploy, name).__name__ == name


def test_output_is_the_second_argument_of_every_function_that_writes():
    for name in dir(moh_deploy):
        value = getattr(moh_deploy, name)
        if inspect.isfunction(value) and "output" in inspect.signature(value).parameters:
            second = list(inspect.signature(value).parameters.values())[1]
            assert (second.name, second.kind) == ("output", second.POSITIONAL_OR_KEYWORD), name


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'exprot'"):
        _ = moh_deploy.exprot


# Every public name means one thing.


PACKAGE = Path(__file__).parents[1] / "moh_deploy"

MORE_THAN_ONCE = {
    "Model": "what runtimes open, and in the signature of `export` what users hand to it",
    "aten": "short for torch.ops.aten",
    "compare": "the public function of the command, and in validate of a runner with recorded runs",
    "load": "the public function, of a package; in the frontend of an original model",
    "main": "where a process begins",
    # Each op has a file of these.
    "function_body": "of an op",
    "reference": "of an op",
    "variant_of": "of an op",
}


def _public_names(path: Path) -> Iterator[str]:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names = [node.name]
        elif isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names = [node.target.id]
        else:
            names = []
        yield from (name for name in names if not name.startswith("_"))


def test_no_public_name_is_defined_twice_but_those_that_are_meant_to_be():
    places: dict[str, list[str]] = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        for name in set(_public_names(path)):
            places[name].append(str(path.relative_to(PACKAGE)))
    twice = {name: found for name, found in places.items() if len(found) > 1}
    assert {name: found for name, found in twice.items() if name not in MORE_THAN_ONCE} == {}
    assert set(MORE_THAN_ONCE) <= set(twice)


# benchmarks/ is not type-checked, and tests of what runs for minutes run at night.


@pytest.mark.parametrize("folder", ["benchmarks", "examples", "tools"])
def test_scripts_import_names_that_exist(folder: str):
    missing = []
    for path in sorted((PACKAGE.parent / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or not node.module:
                continue
            if node.module.partition(".")[0] == PACKAGE.name:
                try:
                    exec(compile(ast.Module([node], []), path, "exec"), {})
                except ImportError as error:
                    missing.append(f"{path.name}:{node.lineno}: {error}")
    assert missing == []
