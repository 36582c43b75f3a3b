import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("touched", ROOT / "tools" / "touched_tests.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("changed", "reaches", "reaches_not"),
    [
        # By imports alone, and by those of its package.
        (
            "moh_deploy/graph/layer_nodes.py",
            "tests/api/test_prune.py",
            "tests/report/test_junit.py",
        ),
        # By the name of a public function, and of a command.
        ("moh_deploy/api/prune.py", "tests/cli/test_group.py", "tests/ops/test_router.py"),
        # By an entry point.
        (
            "moh_deploy/runtime/tensorrt/models.py",
            "tests/api/test_run.py",
            "tests/report/test_junit.py",
        ),
        # By a conftest.py.
        ("tests/cuda/conftest.py", "tests/cuda/test_abi.py", "tests/ops/test_router.py"),
        # By its name in a test.
        ("docs/cost.md", "tests/cli/test_decide.py", "tests/ops/test_router.py"),
    ],
)
def test_change_reaches_the_tests_that_import_or_name_it(
    tool: ModuleType, changed: str, reaches: str, reaches_not: str
):
    assert all((ROOT / path).is_file() for path in (changed, reaches, reaches_not))
    found = tool.tests_of([Path(changed)])
    assert reaches in found
    assert reaches_not not in found


def test_change_that_no_import_shows_reaches_all_tests(tool: ModuleType):
    changed = Path("moh_deploy/graph/layer_nodes.py"), Path("plugins/cpu/x.cc")
    assert tool.tests_of(changed) == ["tests"]
