"""Write what follows from the specs of the ops: the lists of docs/ops.md, and op_contract.h, by
which the native code reads and checks nodes.

python tools/generate_from_ops.py           writes them
python tools/generate_from_ops.py --check   fails where they are not what the specs say
"""

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from moh_deploy.ops import OPS, OpSpec
from moh_deploy.ops.plugin_support import PLUGINS
from moh_deploy.ops.spec import FLOAT_TYPES, LENGTH_TYPES, PACKED_TYPES, AttributeSpec, OpInput

ROOT = Path(__file__).resolve().parents[1]

# What stands between two such lines belongs to the op that is named.
LISTS = re.compile(
    r"(?P<start><!-- generated: (?P<op>\w+) -->\n)(?P<lists>.*?)(?P<end><!-- /generated -->\n)",
    re.DOTALL,
)
SHAPE = re.compile(r"(?<!`)(\[[^\]]+\])(?!`)")  # [B, S, Hq*D]


def docs(text: str) -> str:
    """Return the page with the lists of today's specs."""
    return LISTS.sub(lambda found: found["start"] + lists(OPS[found["op"]]) + found["end"], text)


def lists(spec: OpSpec) -> str:
    """Return two lists of Markdown: inputs and outputs, attributes."""
    inputs = [f"- `{given.name}`{_kind(given)}: {_prose(given.doc)}" for given in spec.inputs]
    outputs = [f"- `{output.name}`: {_prose(output.doc)}" for output in spec.outputs]
    values = [f"- `{a.name}` ({_type(a)}): {_prose(a.doc)}" for a in spec.attributes]
    head = f"`{spec.name}`: inputs and outputs"
    return "\n".join(["", head, "", *inputs, *outputs, "", "Attributes", "", *values, "", ""])


def _kind(given: OpInput) -> str:
    own = [] if given.types == FLOAT_TYPES else [" or ".join(given.types)]
    found = ", ".join([*(["optional"] if given.optional else []), *own])
    return f" ({found})" if found else ""


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


def header(_: str) -> str:
    """Return the text of `plugins/include/moh/op_contract.h`."""
    texts = [
        HEADER_START,
        _float_types(),
        *map(_op_contract, OPS.values()),
        "}  // namespace moh::contract\n\n// clang-format on\n",
    ]
    return "\n".join(texts)


HEADER_START = """\
// Generated from moh_deploy/ops by tools/generate_from_ops.py: change it there.
//
// The ops of docs/ops.md, their inputs and attributes in order, and the largest sizes that plugins
// take.
#pragma once

#include "moh/contract.h"
#include "moh/tensor.h"

// clang-format off

namespace moh::contract {
"""


def _float_types() -> str:
    """The dtypes that all ops take, for the C++ compiler and for people."""
    types = ", ".join(
        f"DType::k{name.capitalize().replace('float', 'Float')}" for name in FLOAT_TYPES
    )
    names = ", ".join(map(_quoted, FLOAT_TYPES))
    text = f"{', '.join(FLOAT_TYPES[:-1])} or {FLOAT_TYPES[-1]}"
    return "\n".join(
        [
            f"inline constexpr DType kFloatTypes[] = {{{types}}};",
            f"inline constexpr const char* kFloatTypeNames[] = {{{names}}};",
            f"inline constexpr char kFloatTypesText[] = {_quoted(text)};",
            "",
        ]
    )


def _op_contract(spec: OpSpec) -> str:
    namespace = _snake(spec.name.removeprefix("MoH"))
    limits = PLUGINS[spec.name].limits if spec.name in PLUGINS else {}
    lines = [f"namespace {namespace} {{", ""]
    for attribute in spec.attributes:
        lines += _attribute_contract(attribute)
    lines += [f"inline constexpr int64_t kMost{_camel(n)} = {most};" for n, most in limits.items()]
    inputs = [
        f"    {{{_quoted(i.name)}, {_bool(i.optional)}, {_input_type(i)}}}," for i in spec.inputs
    ]
    attributes = [f"    k{_camel(a.name)}," for a in spec.attributes]
    lines += [
        "inline constexpr InputContract kInputs[] = {  // name, optional, type",
        *inputs,
        "};",
        "inline constexpr AttributeContract kAttributes[] = {",
        *attributes,
        "};",
        f'inline constexpr OpContract kOp = make_contract("{spec.name}", kInputs, kAttributes);',
        "",
        f"}}  // namespace {namespace}",
        "",
    ]
    return "\n".join(lines)


def _attribute_contract(attribute: AttributeSpec) -> list[str]:
    """Its choices, if it has any, and the attribute itself."""
    name = f"k{_camel(attribute.name)}"
    types = {"int": "kInt", "float": "kFloat", "string": "kText"}
    value, lines = f"{{{_quoted(attribute.name)}, AttributeType::{types[attribute.type]}}}", []
    made = f"AttributeContract{value}"
    if attribute.choices:
        # Numbers are their own places among the choices, and so have to be 0, 1 and so on.
        assert attribute.type == "string" or attribute.choices == tuple(
            range(len(attribute.choices))
        )
        choices = ", ".join(_quoted(str(choice)) for choice in attribute.choices)
        lines.append(f"inline constexpr const char* {name}Choices[] = {{{choices}}};")
        made += f".one_of({name}Choices)"
    if attribute.at_least is not None:
        made += f".with_at_least({attribute.at_least})"
    if attribute.above is not None:
        made += f".with_above({attribute.above:g})"
    if attribute.odd:
        made += ".with_odd()"
    if attribute.default is not None:
        default = attribute.default
        place = attribute.choices.index(default) if isinstance(default, str) else default
        made += f".default_to({place})"
    head = f"inline constexpr auto {name} ="
    whole = f"{head} {made};"
    return [*lines, *([whole] if len(whole) <= 100 else [head, f"    {made};"])]


def _input_type(given: OpInput) -> str:
    if given.constraint == "T":
        return "InputType::kShared"
    others = {LENGTH_TYPES: "kLengths", PACKED_TYPES: "kPacked"}
    return f"InputType::{others.get(given.types, 'kMask')}"


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def _camel(name: str) -> str:
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def _quoted(text: str) -> str:
    return f'"{text}"'


def _bool(value: bool) -> str:
    return "true" if value else "false"


FILES: Mapping[Path, Callable[[str], str]] = {
    ROOT / "docs" / "ops.md": docs,
    ROOT / "plugins" / "include" / "moh" / "op_contract.h": header,
}
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
