"""What the plugins take: the library, Python and the docs say the same."""

import ctypes
import json
import re
from pathlib import Path

import pytest

import moh_deploy
from moh_deploy.ops import OPS
from moh_deploy.ops.plugin_support import PLUGINS, PluginSupport
from tests.cuda.trt.builds import ROOT

DOCS = ROOT / "docs" / "tensorrt-plugin.md"


def _text(library: Path, function: str) -> str:
    found = getattr(ctypes.CDLL(str(library)), function)
    found.restype = ctypes.c_char_p
    return found().decode()


def _as_data(support: PluginSupport) -> dict:
    attributes = [
        {"name": a.name, "type": a.type, "required": a.default is None}
        for a in OPS[support.op].attributes
    ]
    fields = [{"name": f.name, "type": f.type, "required": False} for f in support.fields]
    inputs = [
        {"name": i.name, "optional": i.optional, "ranks": list(i.ranks), "dtypes": list(i.dtypes)}
        for i in support.inputs
    ]
    return {"inputs": inputs, "fields": attributes + fields, "limits": dict(support.limits)}


def test_the_library_says_what_python_says(fake_library: Path):
    table = json.loads(_text(fake_library, "moh_plugin_table"))
    assert table == {op: _as_data(support) for op, support in PLUGINS.items()}


def test_the_library_says_its_version(fake_library: Path):
    assert _text(fake_library, "moh_plugin_version") == moh_deploy.__version__


def _section(support: PluginSupport) -> str:
    """Return the docs of an op's inputs: its limits, then the inputs by rank."""
    ranks: dict[str, list[str]] = {}
    for given in support.inputs:
        ranks.setdefault(" or ".join(map(str, given.ranks)), []).append(f"`{given.name}`")
    limits = ", ".join(f"`{name}` {most}" for name, most in support.limits.items())
    inputs = [f"- rank {rank}: {', '.join(names)}" for rank, names in ranks.items()]
    lines = [f"**`{support.op}`**: up to {limits}", "", *inputs, ""]
    return "\n".join(lines).replace("1 or 2 or 3 or 4", "1 to 4")


@pytest.mark.parametrize("op", PLUGINS)
def test_the_docs_have_the_same_inputs(op: str):
    assert f"\n{_section(PLUGINS[op])}\n" in DOCS.read_text()


def test_the_docs_name_every_field():
    text = DOCS.read_text()
    for support in PLUGINS.values():
        for field in support.fields:
            assert re.search(rf"^- `{field.name}` \({field.type}, ", text, re.MULTILINE)
