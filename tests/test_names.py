"""Every public name means one thing."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "moh_deploy"

MORE_THAN_ONCE = {
    "Model": "what runtimes open, and in the signature of `export` what users hand to it",
    "aten": "short for torch.ops.aten",
    "compare": "the public function of the command, and in validate of a runner with recorded runs",
    "command": "each file of the command line has its own",
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
            names = [one.id for one in node.targets if isinstance(one, ast.Name)]
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
