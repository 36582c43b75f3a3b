"""Read and write `manifest.json`, and refuse what this version does not understand.

The file carries a digest of what it says, which tells damage and edits by hand from what was
written; whoever means to deceive can compute it anew.
"""

import functools
import json
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from moh_deploy.errors import PackageError
from moh_deploy.package.manifest import FORMAT_VERSION, Manifest
from moh_deploy.package.manifest_sense import GET_AGAIN, check_sense
from moh_deploy.system.bounded_file import sha256_of_json
from moh_deploy.system.bounded_json import has_keys, read_json

MANIFEST_NAME = "manifest.json"
_DIGEST = "sha256"


def read_manifest(path: Path) -> Manifest:
    """Decode a manifest.

    Raises:
        PackageError: Unreadable file, unknown format version, keys missing, unexpected or of a
            wrong type, something else than what was written, or something that no model can have.
    """
    content = _read(path)
    # First of all: keys of another version must not be reported as mistakes.
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise PackageError(
            f"{path}: format_version is {_shown(version)}, this version of moh-deploy supports"
            f" {FORMAT_VERSION}.",
            hint="Export the model again, or use the moh-deploy that made the package.",
        )
    written = content.pop(_DIGEST, None)  # packages of before there was a digest have none
    found = sha256_of_json(content)
    is_damaged = written is not None and written != found
    try:
        # As JSON text, not as objects: only so does strict mode take lists for tuples.
        manifest = _adapter().validate_json(json.dumps(content))
    except ValidationError as error:
        # Damage is called damage, and not a strange value.
        if not is_damaged or error.errors()[0]["type"] not in _OF_VALUES:
            raise PackageError(f"{path}: {_first_problem(error)}.", hint=GET_AGAIN) from error
    else:
        if not is_damaged:
            check_sense(path, manifest)
            return manifest
    raise PackageError(
        f"{path} has changed since the package was written: sha256 of what it says is {found},"
        f" expected {written}.",
        hint="Copy the package again, or export the model again."
        " `moh-deploy tune` is what changes how layers run.",
    )


_OF_VALUES = {
    *("finite_number", "greater_than_equal", "less_than_equal", "string_pattern_mismatch"),
    *("string_too_short", "value_error"),
}
"""The kinds of pydantic's errors that a field of the right type has."""


def manifest_text(manifest: Manifest) -> str:
    """Encode a manifest; `read_manifest` gives an equal one back."""
    content = json.loads(_adapter().dump_json(manifest))
    return (
        json.dumps({**content, _DIGEST: sha256_of_json(content)}, indent=2, ensure_ascii=False)
        + "\n"
    )


def looks_like_manifest(path: Path) -> bool:
    """Tell whether a file is the manifest of a package, of whatever format version."""
    # Not decoded: a package of another version, or a damaged one, may still be replaced.
    return has_keys(path, {"format_version", "files"})


@functools.cache
def _adapter() -> TypeAdapter[Manifest]:
    """Return the decoder of manifests, made once: that takes longer than reading one."""
    return TypeAdapter(Manifest)


def _read(path: Path) -> dict[str, object]:
    try:
        content = read_json(path, error=PackageError)
    except FileNotFoundError as error:
        raise PackageError(
            f"{path.parent} is not a package: it has no {MANIFEST_NAME}.",
            hint="Make one with `moh-deploy export MODEL --output DIR`.",
        ) from error
    if not isinstance(content, dict):
        raise PackageError(f"{path}: got a JSON {type(content).__name__}, expected an object.")
    return content


def _first_problem(error: ValidationError) -> str:
    # One problem is enough to act on.
    problem = error.errors(include_url=False)[0]
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"]]
    key = "".join(parts).removeprefix(".")
    kind = problem["type"]
    if kind == "missing":
        return f"key '{key}' is missing"
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"unexpected key '{key}'"
    if kind == "value_error":
        return f"key '{key}': {problem['ctx']['error']}"
    return f"key '{key}': {problem['msg']}, got {_shown(problem['input'])}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."


_LONGEST_SHOWN = 200
