"""What is generated from the specs of the ops is what they say."""

import importlib.util
from pathlib import Path

import pytest

from moh_deploy.ops import OPS

ROOT = Path(__file__).parents[2]
TOOL = importlib.util.spec_from_file_location(
    "generate_from_ops", ROOT / "tools" / "generate_from_ops.py"
)
generate_from_ops = importlib.util.module_from_spec(TOOL)
TOOL.loader.exec_module(generate_from_ops)
FILES = generate_from_ops.FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_generated_files_are_up_to_date(path: Path):
    assert FILES[path](path.read_text()) == path.read_text(), (
        f"run python tools/generate_from_ops.py: {path.relative_to(ROOT)} is stale"
    )


def test_a_stale_file_fails_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stale = tmp_path / "ops.md"
    stale.write_text((ROOT / "docs" / "ops.md").read_text().replace("default 1e-12", "default 0"))
    monkeypatch.setattr(generate_from_ops, "ROOT", tmp_path)
    monkeypatch.setattr(generate_from_ops, "FILES", {stale: generate_from_ops.docs})
    monkeypatch.setattr("sys.argv", ["generate_from_ops.py", "--check"])
    with pytest.raises(SystemExit, match="run python tools/generate_from_ops"):
        generate_from_ops.main()
    monkeypatch.setattr("sys.argv", ["generate_from_ops.py"])
    generate_from_ops.main()
    assert "default 1e-12" in stale.read_text()


def test_the_page_has_the_lists_of_every_op():
    page = (ROOT / "docs" / "ops.md").read_text()
    assert {found["op"] for found in generate_from_ops.LISTS.finditer(page)} == OPS.keys()
    assert all(f"- `{a.name}` (" in page for spec in OPS.values() for a in spec.attributes)
