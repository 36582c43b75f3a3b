import ast
from pathlib import Path

import pytest

import moh_deploy
from moh_deploy.ops import OPS
from tests.nightly import sampled

PLUGINS = Path(__file__).parents[2] / "plugins"
SOURCES = {path: path.read_text() for path in Path(moh_deploy.__file__).parent.rglob("*.py")}


def files_with(name: str, sources: dict[Path, str]) -> list[str]:
    """Names of the files that spell the op out as a string."""
    return [
        path.name
        for path, source in sources.items()
        if name in source
        and any(
            isinstance(n, ast.Constant) and n.value == name for n in ast.walk(ast.parse(source))
        )
    ]


@sampled(3)
@pytest.mark.parametrize("name", OPS)
def test_the_name_of_an_op_is_spelled_out_in_one_file(name: str):
    assert len(files_with(name, SOURCES)) == 1


def test_another_spelling_is_noticed():
    more = {**SOURCES, Path("pass.py"): "if node.op_type == 'MoHRouter':\n    pass\n"}
    assert files_with("MoHRouter", more) == ["op_names.py", "pass.py"]


@pytest.mark.parametrize("name", OPS)
def test_native_code_has_the_name_from_the_contract(name: str):
    sources = [path for path in PLUGINS.rglob("*.*") if path.suffix in (".h", ".cc", ".cu", ".cuh")]
    assert [path.name for path in sources if f'"{name}"' in path.read_text()] == ["op_contract.h"]
