"""Record what the routers do with inputs from files, request by request."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np

from moh_deploy.package import Manifest, OnnxPackage
from moh_deploy.runtime.base import Runner
from moh_deploy.serving.telemetry.routing import RoutingReader
from moh_deploy.serving.telemetry.window import RecordedWindow, WindowAbout
from moh_deploy.system.npz import Array
from moh_deploy.validate.reference.input_sets import batch_dim, picked
from moh_deploy.validate.reference.samples import Sample


def record_requests(
    package: OnnxPackage,
    reader: RoutingReader,
    runner: Runner,
    requests: Iterator[dict[str, Array]],
) -> RecordedWindow:
    """Run requests one by one, and count what the routers did with each.

    Raises:
        ConfigError: A request does not fit the model.
        BackendError: The runtime failed.
    """
    rows, seconds = [np.zeros((0, reader.layout.width))], []
    for inputs in requests:
        results = runner.run_returning(inputs, reader.names)
        rows.append(reader.count(inputs, results, (1,)))
        seconds.append(time.time())
    about = WindowAbout(package.manifest.files["model.onnx"], reader.layout.layers)
    counts = np.concatenate(rows)
    return RecordedWindow(about, counts, np.ones(len(counts), np.int64), np.array(seconds))


def requests_of(
    manifest: Manifest, files: Sequence[Sample], size: int
) -> Iterator[dict[str, Array]]:
    """Yield the inputs of files, cut into requests of so many samples.

    Files of a model without a dimension of samples are a request each. Samples that are left over
    at the end of a file make no request.
    """
    dim = batch_dim(manifest)
    for file in files:
        inputs = dict(file.known.inputs)
        if dim is None:
            yield inputs
            continue
        for start in range(0, file.known.sizes[dim] - size + 1, size):
            yield picked(manifest.inputs, inputs, dim, range(start, start + size))
