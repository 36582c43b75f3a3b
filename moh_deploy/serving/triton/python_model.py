"""The model that Triton's Python backend runs: `model.py` of a bundle imports it.

Triton forms batches of requests and hands each to `execute`; `ServedModel` answers them, as in
every other server. Tensors go by DLPack: the backend's own conversion was built for numpy 1 and
gives wrong numbers with numpy 2, without a word.
"""

import json
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

from moh_deploy.errors import ConfigError, MoHDeployError
from moh_deploy.runtime.onnxruntime.values import from_dlpack, to_dlpack
from moh_deploy.serving.metrics import Family, single
from moh_deploy.serving.process_health import NO_REQUESTS, LimitedLog, RunsUnderWay, requests_family
from moh_deploy.serving.served_model import Reply, answer_batch, find_joining
from moh_deploy.serving.triton.bundle_json import open_bundle
from moh_deploy.system.npz import Array

# The server's classes exist in its own process only, and say nothing of their types.
Request: TypeAlias = Any
Response: TypeAlias = Any

# How old counts may be when Prometheus asks: each goes to the server by a message of its own.
PUSH_SECONDS = 0.5

# A batch that takes longer is taken for hung. Nothing here can end it: the liveness probe can.
HUNG_SECONDS = 60.0


class TritonPythonModel:
    """A model of Triton's Python backend, a process of its own each: all names are Triton's."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the package; with an error, the server reports it and does not load the model."""
        import triton_python_backend_utils as pb_utils

        self._pb: ModuleType = pb_utils
        to_dlpack(np.zeros(1))  # Now rather than at the first answer, if this cannot be done here.
        config = json.loads(args["model_config"])
        instances = sum(group["count"] for group in config["instance_group"])
        # repository/NAME/ is two levels below the bundle.
        root = Path(args["model_repository"]).parents[1]
        self._served = open_bundle(root, instances=instances)
        self._axis, alone_because = find_joining(self._served)
        if alone_because is not None:
            self._pb.Logger.log_info(f"requests run one by one: {alone_because}.")
        logs = config.get("parameters", {}).get("log_batches", {})
        self._logs_batches = logs.get("string_value") == "1"
        labels = {"model": args["model_name"], "version": args["model_version"]}
        self._metrics = _Metrics(pb_utils, args["model_instance_name"], labels)
        self._runs = RunsUnderWay(1, HUNG_SECONDS)
        self._statuses = NO_REQUESTS.copy()
        self._log = LimitedLog()
        if self._served.export is not None:
            self._served.export.start(lambda: self._families(time.time()))
        # An instance that dies before its first heartbeat would never be missed.
        self._push(now=time.time())
        self._is_closing = threading.Event()
        self._pusher = threading.Thread(target=self._keep_pushing, daemon=True)
        self._pusher.start()

    def execute(self, requests: Sequence[Request]) -> list[Response]:
        """Answer the requests of one batch, each with its outputs or an error."""
        responses: dict[int, Response] = {}
        inputs: dict[int, dict[str, Array]] = {}
        for index, request in enumerate(requests):
            read = self._read(request)
            if isinstance(read, MoHDeployError):
                responses[index] = self._error(read)
            else:
                inputs[index] = read
        # Each is a batch: requests of equal other sizes, or one alone; in order.
        groups: dict[object, list[int]] = {}
        for index, tensors in inputs.items():
            key = index if self._axis is None else self._axis.key(tensors)
            groups.setdefault(key, []).append(index)
        for group in groups.values():
            if self._logs_batches:
                ids = " ".join(requests[index].request_id() for index in group)
                self._pb.Logger.log_info(f"batch of requests: {ids}")
            asked = [inputs[index] for index in group]
            self._runs.begins(0)
            replies = answer_batch(self._served.answer, self._axis, asked)
            for index, reply in zip(group, replies, strict=True):
                responses[index] = self._response(requests[index], reply)
        self._runs.ends(0)
        return [responses[index] for index in range(len(requests))]

    def finalize(self) -> None:
        """Send the last counts and close the package, when the server unloads the model."""
        self._is_closing.set()
        self._pusher.join()
        self._push(now=0.0)
        self._log.close()
        self._served.close()

    def _read(self, request: Request) -> dict[str, Array] | MoHDeployError:
        """Copy the inputs of a request out of the server's memory; return why they do not fit.

        A bad request must not spoil the batch that it is in.
        """
        inputs: dict[str, Array] = {}
        for info in self._served.inputs:
            tensor = self._pb.get_input_tensor_by_name(request, info.name)
            if tensor is not None:
                array = from_dlpack(tensor)
                # A tensor of no axes has one of size 1 in the server.
                inputs[info.name] = array if info.shape else array.reshape(())
        try:
            self._served.check(inputs)
        except MoHDeployError as error:
            return error
        return inputs

    def _response(self, request: Request, reply: Reply | Exception) -> Response:
        if isinstance(reply, Exception):
            return self._error(reply)
        outputs = reply.outputs
        # The server names them in a set, whose order is another in each process.
        wanted = request.requested_output_names()
        tensors = [
            self._pb.Tensor.from_dlpack(info.name, to_dlpack(np.atleast_1d(outputs[info.name])))
            for info in self._served.outputs
            if info.name in wanted
        ]
        self._statuses[200] += 1
        return self._pb.InferenceResponse(tensors)

    def _error(self, error: Exception) -> Response:
        # What the client did wrong, or what went wrong here: the server makes 4xx and 5xx of it.
        is_clients = isinstance(error, ConfigError)
        self._statuses[400 if is_clients else 500] += 1
        code = self._pb.TritonError.INVALID_ARG if is_clients else self._pb.TritonError.INTERNAL
        if isinstance(error, MoHDeployError):
            message = error.message
        else:
            self._log.write("".join(traceback.format_exception(error)))
            message = f"this is a bug of moh-deploy: {type(error).__name__} was not expected."
        return self._pb.InferenceResponse(error=self._pb.TritonError(message, code))

    def _keep_pushing(self) -> None:
        guard = self._served.guard
        while not self._is_closing.wait(PUSH_SECONDS):
            if guard is not None:
                guard.tick()  # it follows its control file where no request comes, too
            self._push(now=time.time())

    def _push(self, now: float) -> None:
        self._metrics.push(self._families(now))

    def _families(self, now: float) -> tuple[Family, ...]:
        # The server goes on to show what a dead instance said last: its time stands still.
        text = "When an instance was last alive, in seconds since 1970; 0: it has ended."
        beat = single("moh_heartbeat_seconds", "gauge", now, text)
        counted = (*self._served.families(), *self._runs.families())
        return (*counted, requests_family(self._statuses), beat)


class _Metrics:
    """The families of a served model among the server's own metrics.

    Instances are processes of their own, whose counters of one name the server adds up; what is a
    gauge says which instance it is of. A histogram goes as the counters that Prometheus makes of
    it, since the server's histograms take single observations only.
    """

    def __init__(self, pb_utils: ModuleType, instance: str, labels: Mapping[str, str]) -> None:
        self._pb = pb_utils
        self._instance = instance
        self._labels = labels  # Of every series: a server has several models.
        self._families: dict[str, Any] = {}
        self._metrics: dict[tuple[str, tuple[tuple[str, str], ...]], Any] = {}
        self._sent: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def push(self, families: Sequence[Family]) -> None:
        """Send what has changed since the last time."""
        for family in families:
            for name, own, value, _ in family.flat():
                labels = {**self._labels, **own}
                if family.kind == "gauge":
                    labels["instance"] = self._instance
                self._send(family, name, labels, value)

    def _send(self, family: Family, name: str, labels: Mapping[str, str], value: float) -> None:
        key = name, tuple(sorted(labels.items()))
        if key not in self._metrics:
            kinds = self._pb.MetricFamily
            if name not in self._families:
                kind = kinds.GAUGE if family.kind == "gauge" else kinds.COUNTER
                self._families[name] = kinds(name=name, description=family.help, kind=kind)
            self._metrics[key] = self._families[name].Metric(labels=dict(labels))
        elif self._sent[key] == value:
            return
        if family.kind == "gauge":
            self._metrics[key].set(value)
        else:
            self._metrics[key].increment(value - self._sent.get(key, 0.0))
        self._sent[key] = value
