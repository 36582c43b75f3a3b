"""Build an engine; it runs in the worker, the only process that imports TensorRT to build."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from moh_deploy.ops.spec import PLUGIN_ATTRIBUTES
from moh_deploy.runtime.tensorrt.messages import (
    BuildAnswer,
    BuildRequest,
    BuildStep,
    Message,
    ParserError,
)


class BuildFailed(Exception):
    """TensorRT built nothing; its log says why."""


class BuildSession:
    """TensorRT in this process: its one logger, and plugin libraries, each of which it takes once.

    Args:
        trt: The module of TensorRT or TensorRT-RTX.
    """

    def __init__(self, trt: Any) -> None:
        self.trt, self.logger = trt, _logger(trt)
        self._loaded: set[str] = set()

    def load_plugins(self, path: str, ops: Sequence[str]) -> None:
        """Load a plugin library, unless it is there.

        Raises:
            BuildFailed: TensorRT does not take it, or it lacks the creator of an op.
        """
        if path not in self._loaded:
            # None, without a word, is what it gives for whatever is wrong.
            if self.trt.get_plugin_registry().load_library(path) is None:
                raise BuildFailed(f"the plugin registry did not take {path}")
            self._loaded.add(path)
        _check_creators(self.trt, path, ops)


def build_engine(
    session: BuildSession, request: BuildRequest, tell: Callable[[Message], None]
) -> BuildAnswer:
    """Parse the model, and build the engine if one is asked for.

    Raises:
        BuildFailed: The plugin library was not taken, or TensorRT built nothing.
        OSError: The engine cannot be written.
    """
    trt = session.trt
    if request.plugin is not None:
        session.load_plugins(request.plugin, request.creators)
    builder = trt.Builder(session.logger)
    parsed = ParsedNetwork(trt, session.logger, builder)
    tell(BuildStep("parsing the model"))
    errors = parsed.parse(request.model)
    if errors:
        return BuildAnswer(errors)
    # Read from the network before it is built: an engine no longer tells.
    answer = BuildAnswer(
        plugins=parsed.plugins(), attentions=parsed.attentions(), types=parsed.types()
    )
    if request.engine is None:
        return answer
    tell(BuildStep("building the engine"))
    start = time.perf_counter()
    size = _write_engine(trt, builder, parsed.network, request, tell)
    return replace(answer, engine_bytes=size, seconds=time.perf_counter() - start)


def _logger(trt: Any) -> Any:
    """Return the process's one logger: TensorRT keeps to the first that it gets."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            # An exception would end the process, be the disk full or not.
            with suppress(OSError):
                if int(severity) <= int(trt.ILogger.Severity.INFO):
                    print(f"{severity.name}: {text}", file=sys.stderr, flush=True)

    return Logger()


def _check_creators(trt: Any, path: str, ops: Sequence[str]) -> None:
    registry = trt.get_plugin_registry()
    # The parser looks a plugin up by all three; a library of another version would be passed over.
    found = {
        (creator.name, creator.plugin_version, creator.plugin_namespace)
        for creator in registry.all_creators
    }
    version, namespace = PLUGIN_ATTRIBUTES["plugin_version"], PLUGIN_ATTRIBUTES["plugin_namespace"]
    missing = [op for op in ops if (op, version, namespace) not in found]
    if missing:
        raise BuildFailed(
            f"{path} has no creator of {', '.join(missing)}, version {version}, namespace"
            f" {namespace}"
        )


def _write_engine(
    trt: Any, builder: Any, network: Any, request: BuildRequest, tell: Callable[[Message], None]
) -> int:
    """Return the size of what was written."""
    config = _config(trt, builder, request)
    monitor = _monitor(trt, tell)
    if monitor is not None:
        config.progress_monitor = monitor
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise BuildFailed("no engine was built")
    assert request.engine is not None
    with Path(request.engine).open("wb") as file:
        file.write(engine)
    if request.timing_cache_out is not None:
        Path(request.timing_cache_out).write_bytes(config.get_timing_cache().serialize())
    return int(engine.nbytes)


def _config(trt: Any, builder: Any, request: BuildRequest) -> Any:
    config = builder.create_builder_config()
    # Else products of float32 would be rounded to 10 bits: `verify` allows 1e-4.
    config.clear_flag(trt.BuilderFlag.TF32)
    names = request.compute_capabilities
    if names:  # The only call that TensorRT-RTX has and TensorRT has not.
        config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        target = getattr(trt.ComputeCapability, f"SM{name.replace('.', '')}")
        config.set_compute_capability(target, index)
    for shapes in request.profiles:
        profile = builder.create_optimization_profile()
        for name, (least, usual, most) in shapes.items():
            profile.set_shape(name, least, usual, most)
        config.add_optimization_profile(profile)
    if request.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_bytes)
    if request.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if request.hardware_compatibility is not None:
        level = getattr(trt.HardwareCompatibilityLevel, request.hardware_compatibility)
        config.hardware_compatibility_level = level
    if request.embed_plugin:
        config.plugins_to_serialize = [request.plugin]
    if request.timing_cache_out is not None:
        measured = b"" if request.timing_cache is None else Path(request.timing_cache).read_bytes()
        # `False`: times of another GPU or version are refused, not used.
        if not config.set_timing_cache(config.create_timing_cache(measured), False):
            config.set_timing_cache(config.create_timing_cache(b""), False)
    return config


def _monitor(trt: Any, tell: Callable[[Message], None]) -> Any:
    """Return a monitor that TensorRT tells its phases to; None where it has none."""
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, name: str, parent: str | None, count: int) -> None:
            with suppress(OSError):
                tell(BuildStep(f"building the engine: {name[:1].lower()}{name[1:]}"))

        def phase_finish(self, name: str) -> None:
            """Nothing is shown of it."""

        def step_complete(self, name: str, index: int) -> bool:
            return True

    return Monitor()


# Parse a model, and read back what the parser made of it. Runs in the worker.

DTYPE_NAMES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}


class ParsedNetwork:
    """A network, and what has to live as long as it does.

    Args:
        trt: The module of TensorRT or TensorRT-RTX.
        logger: The process's logger.
        builder: Makes the network.
    """

    def __init__(self, trt: Any, logger: Any, builder: Any) -> None:
        self._trt = trt
        self.network = builder.create_network(_strongly_typed(trt))
        self._parser = trt.OnnxParser(self.network, logger)

    def parse(self, path: str) -> tuple[ParserError, ...]:
        """Parse a file; return what the parser refuses."""
        if self._parser.parse_from_file(path):
            self._make_attention_decomposable()
            return ()
        return tuple(map(_error, map(self._parser.get_error, range(self._parser.num_errors))))

    def plugins(self) -> tuple[str, ...]:
        """Return the names of the nodes that became plugins."""
        return self._nodes_of("PLUGIN_V3")

    def attentions(self) -> tuple[str, ...]:
        """Return the names of the nodes that became an attention of TensorRT's own."""
        # An attention has two layers; of the first the parser does not tell the node.
        return self._nodes_of("ATTENTION_OUTPUT")

    def types(self) -> dict[str, str]:
        """Return the name of each tensor to its dtype."""
        inputs = map(self.network.get_input, range(self.network.num_inputs))
        made = (layer.get_output(i) for layer in self._layers() for i in range(layer.num_outputs))
        tensors = (tensor for group in (inputs, made) for tensor in group if tensor is not None)
        return {
            tensor.name: DTYPE_NAMES.get(tensor.dtype.name, tensor.dtype.name) for tensor in tensors
        }

    def _nodes_of(self, kind_name: str) -> tuple[str, ...]:
        # Older versions have no attention.
        kind = getattr(self._trt.LayerType, kind_name, None)
        found = (layer for layer in self._layers() if kind is not None and layer.type == kind)
        return tuple(map(_node_name, found))

    def _layers(self) -> Iterator[Any]:
        return map(self.network.get_layer, range(self.network.num_layers))

    def _make_attention_decomposable(self) -> None:
        """ONNX's Attention has kernels for half precision only: let others be made of operators."""
        kind = getattr(self._trt.LayerType, "ATTENTION_INPUT", None)
        for layer in self._layers():
            if kind is not None and layer.type == kind:
                # TensorRT's binding hands out the base class, `ILayer`: setting the class is how it
                # is cast.
                layer.__class__ = self._trt.IAttentionInputLayer
                layer.attention.decomposable = True


def _node_name(layer: Any) -> str:
    """The parser writes the node's name there; the layer's own may have a number behind it."""
    written = re.fullmatch(r"\[ONNX Layer: (.*)\]", layer.metadata)
    return written[1] if written else str(layer.name)


def _strongly_typed(trt: Any) -> int:
    """The graph says which dtypes are used. In TensorRT 10 that has to be asked for."""
    # Where there is no such flag, every network is strongly typed.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _error(error: Any) -> ParserError:
    return ParserError(_ask(error.node_name), _ask(error.node_operator), _ask(error.desc))


def _ask(read: Callable[[], Any]) -> str:
    return str(read() or "")
