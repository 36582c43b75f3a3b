"""Weights in safetensors: one file, or shards that an index (`*.safetensors.index.json`) lists."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from moh_deploy.digest import sha256_of
from moh_deploy.errors import CheckpointError


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of one file.

    Raises:
        CheckpointError: The file is damaged.
    """
    try:
        return load_file(path)
    except SafetensorError as error:
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
        names = set(json.loads(index.read_bytes())["weight_map"].values())
        shards = tuple(index.parent / Path(name).name for name in sorted(names))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index}: is not an index of safetensors shards: it has no 'weight_map' of names to"
            " files."
        ) from error
    for shard in shards:
        if not shard.is_file():
            raise CheckpointError(f"{shard}: no such file; '{index.name}' lists it.")
    return shards


def sha256_of_shards(index: Path) -> str:
    """Return the digest of the digests of all shards, in order of their names."""
    digests = [sha256_of(shard) for shard in list_shards(index)]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()
