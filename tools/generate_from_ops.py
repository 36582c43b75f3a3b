"""Write what follows from the specs of the ops: the tables of docs/ops.md.

python tools/generate_from_ops.py           writes them
python tools/generate_from_ops.py --check   fails where they are not what the specs say
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from moh_deploy.ops import OPS, OpSpec
from moh_deploy.ops.spec import FLOAT_TYPES, AttributeSpec, InputSpec

ROOT = Path(__file__).resolve().parents[1]

# What stands between two such lines belongs to the op that is named.
TABLES = re.compile(
    r"(?P<start><!-- generated: (?P<op>\w+) -->\n)(?P<table>.*?)(?P<end><!-- /generated -->\n)",
    re.DOTALL,
)
SHAPE = re.compile(r"(?<!`)(\[[^\]]+\])(?!`)")  # [B, S, Hq*D]


def docs(text: str) -> str:
    """The page with the tables of today's specs."""
    return TABLES.sub(lambda found: found["start"] + tables(OPS[found["op"]]) + found["end"], text)


def tables(spec: OpSpec) -> str:
    """Two tables of Markdown: inputs and outputs, attributes."""
    rows = [f"| `{given.name}`{_kind(given)} | {_prose(given.doc)} |" for given in spec.inputs]
    rows += [f"| `{output.name}` | {_prose(output.doc)} |" for output in spec.outputs]
    values = [f"| `{a.name}` | {_type(a)} | {_prose(a.doc)} |" for a in spec.attributes]
    return "\n".join(
        [
            "",
            f"| {spec.name} | |",
            "|---|---|",
            *rows,
            "",
            "| attribute | type | |",
            "|---|---|---|",
            *values,
            "",
            "",
        ]
    )


def _kind(given: InputSpec) -> str:
    own = "" if given.types == FLOAT_TYPES else f", {' or '.join(given.types)}"
    return (", optional" if given.optional else "") + own


def _type(attribute: AttributeSpec) -> str:
    """`int, 1 or more, odd` or `string, none or gelu, default none`."""
    parts: list[str] = [attribute.type]
    if attribute.choices:
        parts.append(" or ".join(map(str, attribute.choices)))
    if attribute.at_least is not None:
        parts.append(f"{attribute.at_least} or more")
    if attribute.above is not None:
        parts.append(f"more than {attribute.above:g}")
    if attribute.odd:
        parts.append("odd")
    if attribute.default is not None:
        parts.append(f"default {attribute.default}")
    return ", ".join(parts)


def _prose(text: str) -> str:
    """Text of a spec with its shapes as code."""
    return SHAPE.sub(r"`\1`", text)


FILES: Mapping[Path, Callable[[str], str]] = {ROOT / "docs" / "ops.md": docs}
"""File to what makes its text from the text that it has."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    check: bool = parser.parse_args().check
    texts = {path: path.read_text() if path.exists() else "" for path in FILES}
    stale = [path for path, make in FILES.items() if make(texts[path]) != texts[path]]
    for path in stale:
        if not check:
            path.write_text(FILES[path](texts[path]))
        print(f"{path.relative_to(ROOT)} {'is stale' if check else 'was written'}")
    if check and stale:
        sys.exit("It is not what moh_deploy/ops says: run python tools/generate_from_ops.py.")


if __name__ == "__main__":
    main()
