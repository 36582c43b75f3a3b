"""Read a YAML file into a pydantic model, or say all that is wrong with it at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from moh_deploy.config.schema_errors import explain
from moh_deploy.errors import ConfigError
from moh_deploy.system.bounded_yaml import read_yaml
from moh_deploy.system.suggest import shortened

M = TypeVar("M", bound=BaseModel)


def read_mapping(path: Path, model: type[BaseModel], *, hint: str | None = None) -> dict[Any, Any]:
    """Read a file that has to hold a mapping: the fields of a model.

    Args:
        hint: Where a user gets one to begin with.

    Raises:
        ConfigError: It is unreadable, or holds something else.
    """
    document = read_yaml(path, error=ConfigError)
    if not isinstance(document, dict):
        found = "is empty" if document is None else f"holds {document!r:.60}"
        raise ConfigError(
            f"{path}: {found}; expected a mapping with {shortened(model.model_fields)}.", hint=hint
        )
    return document


def checked(document: object, model: type[M], source: str) -> M:
    """Return what a document says.

    Args:
        source: What messages call it.

    Raises:
        ConfigError: It is not of the schema: a line for each thing that is wrong.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        lines = [explain(details, document, source, model=model) for details in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None
