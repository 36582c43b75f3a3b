import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = '''
def clamp(value: int = 3, *, low: bool = True) -> int:
    """Return é."""
    if not (value) < (2) and low:
        raise ValueError("é" + str(value - 1))
    print("é", value is not None)
    return value
'''


@pytest.fixture
def mutants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    module = importlib.import_module("mutants")
    (tmp_path / "module.py").write_text(SOURCE)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return module


def test_each_mutant_is_an_edit_at_one_place_that_compiles(mutants):
    planted = list(mutants.mutants_of(Path("module.py")))
    assert {mutant.new for mutant in planted} >= {"<=", "or", "-", "is", "pass", "return None"}
    trees = {ast.dump(ast.parse(mutant.text())) for mutant in planted}
    assert len(trees) == len(planted)
    assert ast.dump(ast.parse(SOURCE)) not in trees


def test_annotations_and_decorators_stay(mutants):
    assert all("-> int:" in mutant.text() for mutant in mutants.mutants_of(Path("module.py")))
