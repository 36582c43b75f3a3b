"""Our models as runners of Polygraphy's. Importing this imports Polygraphy."""

import time
from collections import OrderedDict
from collections.abc import Mapping

from polygraphy import util
from polygraphy.backend.base import BaseRunner
from polygraphy.common import TensorMetadata

from moh_deploy.runtime.base import Model, Variant
from moh_deploy.system.npz import Array


class PolygraphyRunner(BaseRunner):
    """A model that Polygraphy activates, runs and deactivates.

    Args:
        name: What results are called.
        model: The model.
        variant: The way in which it is opened.
    """

    def __init__(self, name: str, model: Model, variant: Variant) -> None:
        super().__init__(name=name)
        self._model, self._variant = model, variant

    def activate_impl(self) -> None:
        """Load the model for Polygraphy."""
        self._loaded = self._model.open(self._variant)

    def deactivate_impl(self) -> None:
        """Give its memory back."""
        self._loaded.close()
        del self._loaded

    def get_input_metadata_impl(self) -> TensorMetadata:
        """Return names, dtypes and shapes; a dynamic size is None."""
        metadata = TensorMetadata()
        for info in self._loaded.inputs:
            shape = [size if isinstance(size, int) else None for size in info.shape]
            metadata.add(info.name, dtype=info.dtype, shape=shape)
        return metadata

    def infer_impl(self, feed_dict: Mapping[str, object]) -> OrderedDict[str, Array]:
        """Run the model once, on arrays or tensors.

        Raises:
            ConfigError: An input is of a wrong dtype or shape.
            BackendError: The runtime failed.
        """
        # Copying tensors to the host is the caller's affair, and not part of the time of the model.
        inputs = {name: util.array.to_numpy(value) for name, value in feed_dict.items()}
        start = time.perf_counter()
        outputs = self._loaded.run(inputs)
        self.inference_time = time.perf_counter() - start
        return OrderedDict(outputs)
