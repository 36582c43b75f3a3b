"""JSON that we wrote ourselves, read back into types."""

import json
from collections.abc import Mapping
from typing import ClassVar, TypeVar

from pydantic import TypeAdapter, ValidationError

from moh_deploy.errors import MoHDeployError

_Kind = TypeVar("_Kind")

_STRICT = {"extra": "forbid", "strict": True, "ser_json_inf_nan": "strings"}


class Strict:
    """Base of what pydantic decodes from JSON: no key too many, no number hidden in a string."""

    __pydantic_config__: ClassVar[Mapping[str, object]] = _STRICT


def decode_strict(
    kind: type[_Kind],
    content: object,
    source: str,
    *,
    error: type[MoHDeployError],
    hint: str | None = None,
) -> _Kind:
    """Decode parsed JSON into a dataclass whose base is `Strict`.

    Args:
        source: Where the content is from; it opens the error message.
        error: What to raise if a key is missing, unknown or of another type.
    """
    try:
        return TypeAdapter(kind).validate_json(json.dumps(content))
    except ValidationError as problem:
        first = problem.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise error(f"{source}: key '{key[:100]}': {first['msg']}.", hint=hint) from problem
