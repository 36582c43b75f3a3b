"""Read YAML that others wrote: plain values only, few enough, and every refusal says where.

PyYAML lets errors of Python through (a date that does not exist, a malformed number), takes the
last of two equal keys, and hands out aliases of aliases of aliases as they stand: what goes through
all of them afterwards never ends. So values are made here, one by one, from the nodes it parses.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path

import yaml

from moh_deploy.errors import MoHDeployError
from moh_deploy.system.bounded_file import read_text

MOST_YAML_BYTES = 2**20
MOST_VALUES = 100_000
_DEEPEST = 50
# Python makes numbers of any length, whose text takes quadratic time; none of ours needs more.
_NUMBER_BITS = 64

_MERGE = "tag:yaml.org,2002:merge"
_COLLECTIONS = {"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}

KeyPath = tuple[str, ...]


def read_yaml(path: Path, *, error: type[MoHDeployError]) -> object:
    """Read a YAML file into plain Python types; None where it is empty.

    Args:
        error: What to raise if it cannot be read, or is not such YAML.
    """
    try:
        text = read_text(path, most_bytes=MOST_YAML_BYTES, error=error)
    except FileNotFoundError:
        raise error(f"{path}: no such file.") from None
    return parse_yaml(text, f"{path}", error=error)


def parse_yaml(text: str, source: str, *, error: type[MoHDeployError]) -> object:
    """Parse YAML into plain Python types; None where it is empty.

    Args:
        source: Where it comes from; it opens the error message.
        error: What to raise if it is not YAML, or says what no plain value is; the message has the
            key path.
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
    except RecursionError:
        raise error(f"{source}: is not valid YAML: {_TOO_DEEP}.") from None
    except Exception as problem:  # PyYAML's own, and those of Python's that it lets through
        raise error(f"{source}: is not valid YAML: {problem}") from problem
    if node is None:
        return None
    try:
        return _Values(loader).of(node, ())
    except _RefusedError as refused:
        place = f"{source}: {'.'.join(refused.path)}" if refused.path else source
        raise error(f"{place}: {refused}.") from refused.__cause__


_TOO_DEEP = f"it is nested deeper than {_DEEPEST} levels"


class _RefusedError(Exception):
    """A refused value; `path` has the keys that lead to it."""

    def __init__(self, path: KeyPath, message: str) -> None:
        super().__init__(message)
        self.path = path


@dataclass
class _Values:
    """Makes plain values of nodes, and counts them: an alias counts each time it is used."""

    loader: yaml.SafeLoader
    count: int = 0

    def of(self, node: yaml.Node, path: KeyPath) -> object:
        self.count += 1
        if self.count > MOST_VALUES:
            raise _RefusedError((), f"it holds more than {MOST_VALUES} values, aliases counted")
        if len(path) > _DEEPEST:
            raise _RefusedError((), _TOO_DEEP)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if node.tag not in _COLLECTIONS:
            raise _RefusedError(path, f"is of type '{node.tag}', expected a mapping or a list")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        return [self.of(item, (*path, str(index))) for index, item in enumerate(node.value)]

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[object, object]:
        found: dict[object, object] = {}
        merged: dict[object, object] = {}
        for key_node, value_node in node.value:
            # A key of the mapping itself wins over a merged one, wherever `<<` stands.
            if key_node.tag == _MERGE:
                for key, value in self._merged(value_node, path).items():
                    merged.setdefault(key, value)
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                raise _RefusedError(path, "a key is a list or a mapping, expected text")
            key = self.of(key_node, (*path, "a key"))
            if key in found:
                line = key_node.start_mark.line + 1
                raise _RefusedError(
                    path, f"key '{_short_text(key)}' stands twice, in line {line} again"
                )
            found[key] = self.of(value_node, (*path, _short_text(key)))
        return {**merged, **found}

    def _merged(self, node: yaml.Node, path: KeyPath) -> dict[object, object]:
        """Return the entries that `<<` takes over; the first of several mappings wins."""
        found: dict[object, object] = {}
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        for source in sources:
            value = self.of(source, (*path, "<<"))
            if not isinstance(value, dict):
                raise _RefusedError(path, "'<<' is no mapping")
            found = {**value, **found}
        return found

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Hashable:
        kind = node.tag.rpartition(":")[2]
        try:
            value: Hashable = self.loader.construct_object(node)
            if isinstance(value, str):
                value.encode()  # half of a surrogate pair cannot be written anywhere
        except yaml.YAMLError as problem:
            raise _RefusedError(path, f"is not valid YAML: {problem}") from problem
        except Exception as problem:  # what Python says of such text, in many kinds of errors
            raise _RefusedError(
                path, f"is '{_short_text(node.value)}', which is no {kind}"
            ) from problem
        if isinstance(value, int) and value.bit_length() > _NUMBER_BITS:
            raise _RefusedError(path, f"is a number of more than {_NUMBER_BITS} bits")
        return value


def _short_text(value: object) -> str:
    text = str(value).encode("ascii", "backslashreplace").decode() if isinstance(value, str) else ""
    text = text or repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
