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


def _row(support: PluginSupport) -> list[str]:
    """The row of the docs' table for one op: inputs by rank, dtypes, limits."""
    ranks: dict[str, list[str]] = {}
    for given in support.inputs:
        ranks.setdefault(" or ".join(map(str, given.ranks)), []).append(f"`{given.name}`")
    limits = [f"`{name}` {most}" for name, most in support.limits.items()]
    shapes = [f"{rank}: {', '.join(names)}" for rank, names in ranks.items()]
    return [
        f"`{support.op}`",
        "; ".join(shapes).replace("1 or 2 or 3 or 4", "1 to 4"),
        ", ".join(limits),
    ]


@pytest.mark.parametrize("op", PLUGINS)
def test_the_docs_have_the_same_table(op: str):
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in _lines("| `MoH")]
    assert _row(PLUGINS[op]) in rows


def test_the_docs_name_every_field():
    text = DOCS.read_text()
    for support in PLUGINS.values():
        for field in support.fields:
            assert re.search(rf"^\| `{field.name}` \|", text, re.MULTILINE)


def _lines(start: str) -> list[str]:
    return [line for line in DOCS.read_text().splitlines() if line.startswith(start)]
