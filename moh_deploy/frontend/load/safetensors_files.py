"""Weights in safetensors: one file, or shards that an index (`*.safetensors.index.json`) lists."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from moh_deploy.errors import CheckpointError
from moh_deploy.system.bounded_file import is_plain_name, open_regular
from moh_deploy.system.bounded_json import read_json
from moh_deploy.system.digest import sha256_of


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of one file.

    Raises:
        CheckpointError: The file is damaged.
    """
    try:
        return load_file(path)
    # A dtype that torch has not, or that safetensors has no name for, is a KeyError or the like.
    except (SafetensorError, OSError, LookupError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: is a damaged safetensors file: {error}.", hint="Copy or download it again."
        ) from error


def read_shards(index: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of all shards that lie beside their index.

    Raises:
        CheckpointError: The index is not one, or a shard is missing or damaged.
    """
    return {name: t for shard in list_shards(index) for name, t in read_safetensors(shard).items()}


def list_shards(index: Path) -> tuple[Path, ...]:
    """Return the files that an index lists; they lie beside it.

    Raises:
        CheckpointError: The file is not an index of shards, or a shard is missing.
    """
    try:
        content = cast("dict[str, Any]", read_json(index, error=CheckpointError))
        names = set(content["weight_map"].values())
        shards = tuple(index.parent / Path(name).name for name in sorted(names))
    except FileNotFoundError:
        raise CheckpointError(f"{index}: no such file.") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index}: is not an index of safetensors shards: it has no 'weight_map' of names to"
            " files."
        ) from error
    for shard in shards:
        _check_shard(index, shard)
    return shards


def _check_shard(index: Path, shard: Path) -> None:
    if not is_plain_name(shard.name):
        raise CheckpointError(f"{index}: lists '{shard.name}', expected a plain file name.")
    try:
        open_regular(shard).close()
    except FileNotFoundError:
        raise CheckpointError(f"{shard}: no such file; '{index.name}' lists it.") from None
    except OSError as error:
        raise CheckpointError(
            f"{shard}: cannot be read: {error.strerror}; '{index.name}' lists it."
        ) from error


def sha256_of_shards(index: Path) -> str:
    """Return the digest of the digests of all shards, in order of their names."""
    digests = [sha256_of(shard) for shard in list_shards(index)]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()
