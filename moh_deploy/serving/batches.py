"""Join the inputs of several requests into one batch, and give each its part of the outputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from moh_deploy.errors import ConfigError
from moh_deploy.package import Manifest
from moh_deploy.runtime.base import ModelInterface
from moh_deploy.system.npz import Array


@dataclass(frozen=True)
class BatchAxis:
    """The first axis of all inputs and outputs, where it is one dynamic dimension: the samples."""

    dim: str  # name of the dimension: `batch`
    most: int | None = None  # the most samples that the model takes; None for any number
    least: int = 1

    @classmethod
    def of(cls, manifest: ModelInterface) -> Self | None:
        """Return the batch axis of a model; None where requests cannot be joined."""
        tensors = (*manifest.inputs, *manifest.outputs)
        first = {info.shape[0] if info.shape else None for info in tensors}
        # A dimension that stands at another place too (batch * batch attention) counts no samples.
        elsewhere = {size for info in tensors for size in info.shape[1:]}
        (dim,) = first if len(first) == 1 else (None,)
        if not isinstance(dim, str) or dim in elsewhere or not dim.isidentifier():
            return None
        ranges = manifest.dim_ranges if isinstance(manifest, Manifest) else {}
        smallest, largest = ranges.get(dim, (1, None))
        return cls(dim, largest, max(1, smallest))

    def size(self, inputs: Mapping[str, Array]) -> int:
        """Return the number of samples in a request whose inputs were checked."""
        return len(next(iter(inputs.values())))

    def key(self, inputs: Mapping[str, Array]) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Return all other sizes of a request: those of requests that are joined are equal."""
        return tuple(sorted((name, array.shape[1:]) for name, array in inputs.items()))

    def joined(self, requests: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
        """Return one batch of requests with equal keys, in their order."""
        if len(requests) == 1:
            return dict(requests[0])
        return {name: np.concatenate([inputs[name] for inputs in requests]) for name in requests[0]}

    def split(
        self, outputs: Mapping[str, Array], sizes: Sequence[int]
    ) -> tuple[dict[str, Array], ...]:
        """Return each request's part of the outputs of a batch.

        Args:
            sizes: Samples of each request, in the order in which they were joined.

        Raises:
            ConfigError: An output has another number of samples: the model mixes them.
        """
        for name, array in outputs.items():
            if len(array) != sum(sizes):
                raise ConfigError(
                    f"output '{name}' has {len(array)} samples, expected the {sum(sizes)} of the"
                    " batch."
                )
        ends = np.cumsum(sizes)
        return tuple(
            {name: array[end - size : end] for name, array in outputs.items()}
            for size, end in zip(sizes, ends, strict=True)
        )


def scalars_of(model: ModelInterface) -> dict[str, int]:
    """Return the inputs and outputs of one number for each sample, and how many axes they have.

    Triton has no tensors without dimensions beside the batch: its clients send and get such a
    number with an axis of size 1 at the end.
    """
    num_axes = 0 if BatchAxis.of(model) is None else 1
    tensors = (*model.inputs, *model.outputs)
    return {info.name: num_axes for info in tensors if len(info.shape) == num_axes}
