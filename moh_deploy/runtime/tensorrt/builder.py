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
from moh_deploy.runtime.tensorrt import messages


class BuildFailed(Exception):
    """TensorRT built nothing; its log says why."""


class BuildSession:
    """TensorRT in this process: its one logger, and plugin libraries, each loaded once.

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
        registry = self.trt.get_plugin_registry()
        if path not in self._loaded:
            # None, without a word, is what it gives for whatever is wrong.
            if registry.load_library(path) is None:
                raise BuildFailed(f"the plugin registry did not take {path}")
            self._loaded.add(path)
        # The parser looks a plugin up by all three; a library of another version would be passed
        # over.
        found = {
            (creator.name, creator.plugin_version, creator.plugin_namespace)
            for creator in registry.all_creators
        }
        version, space = (PLUGIN_ATTRIBUTES[f"plugin_{key}"] for key in ("version", "namespace"))
        missing = [op for op in ops if (op, version, space) not in found]
        if missing:
            raise BuildFailed(
                f"{path} has no creator of {', '.join(missing)}, version {version}, namespace"
                f" {space}"
            )


def build_engine(
    session: BuildSession, request: messages.BuildRequest, tell: Callable[[messages.Message], None]
) -> messages.BuildAnswer:
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
    tell(messages.BuildStep("parsing the model"))
    errors = parsed.parse(request.model)
    if errors:
        return messages.BuildAnswer(errors)
    # Read from the network before it is built: an engine no longer tells.
    answer = messages.BuildAnswer(
        plugins=parsed.plugins(), attentions=parsed.attentions(), types=parsed.types()
    )
    if request.engine is None:
        return answer
    tell(messages.BuildStep("building the engine"))
    start = time.perf_counter()
    config = _config(trt, builder, request)
    if hasattr(trt, "IProgressMonitor"):
        config.progress_monitor = _monitor(trt, tell)
    engine = builder.build_serialized_network(parsed.network, config)
    if engine is None:
        raise BuildFailed("no engine was built")
    with Path(request.engine).open("wb") as file:
        file.write(engine)
    if request.timing_cache_out is not None:
        Path(request.timing_cache_out).write_bytes(config.get_timing_cache().serialize())
    return replace(answer, engine_bytes=int(engine.nbytes), seconds=time.perf_counter() - start)


def _logger(trt: Any) -> Any:
    """Return the process's one logger: TensorRT keeps to the first that it gets."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            # An exception would end the process, be the disk full or not.
            with suppress(OSError):
                if int(severity) <= int(trt.ILogger.Severity.INFO):
                    print(f"{severity.name}: {text}", file=sys.stderr, flush=True)

    return Logger()


def _config(trt: Any, builder: Any, request: messages.BuildRequest) -> Any:
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
    _set_options(trt, config, request.builder)
    if request.embed_plugin:
        config.plugins_to_serialize = [request.plugin]
    if request.timing_cache_out is not None:
        measured = b"" if request.timing_cache is None else Path(request.timing_cache).read_bytes()
        # `False`: times of another GPU or version are refused, not used.
        if not config.set_timing_cache(config.create_timing_cache(measured), False):
            config.set_timing_cache(config.create_timing_cache(b""), False)
    return config


def _set_options(trt: Any, config: Any, asked: messages.BuilderOptions) -> None:
    flags = {
        "REFIT": asked.refit,
        "WEIGHT_STREAMING": asked.weight_streaming,
        "STRIP_PLAN": asked.strip_weights,
    }
    for name in (name for name, is_asked in flags.items() if is_asked):
        flag = getattr(trt.BuilderFlag, name, None)
        if flag is None:
            raise BuildFailed(f"version {trt.__version__} has no engines with {name}")
        config.set_flag(flag)
    if asked.optimization_level is not None:
        config.builder_optimization_level = asked.optimization_level


def _monitor(trt: Any, tell: Callable[[messages.Message], None]) -> Any:
    """Return a monitor that TensorRT tells its phases to."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, name: str, parent: str | None, count: int) -> None:
            with suppress(OSError):
                tell(messages.BuildStep(f"building the engine: {name[:1].lower()}{name[1:]}"))

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
        # The graph says which dtypes are used. In TensorRT 10 that has to be asked for; where there
        # is no such flag, every network is strongly typed.
        flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        self.network = builder.create_network(0 if flag is None else 1 << int(flag))
        self._parser = trt.OnnxParser(self.network, logger)

    def parse(self, path: str) -> tuple[messages.ParserError, ...]:
        """Parse a file; return what the parser refuses."""
        if not self._parser.parse_from_file(path):
            errors = map(self._parser.get_error, range(self._parser.num_errors))
            asked = ((error.node_name, error.node_operator, error.desc) for error in errors)
            return tuple(
                messages.ParserError(*(str(ask() or "") for ask in asks)) for asks in asked
            )
        # ONNX's Attention has kernels for half precision only: let others be made of operators.
        for layer in self._layers("ATTENTION_INPUT"):
            # TensorRT's binding hands out the base class, `ILayer`: setting the class is how it is
            # cast.
            layer.__class__ = self._trt.IAttentionInputLayer
            layer.attention.decomposable = True
        return ()

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

    def _nodes_of(self, kind: str) -> tuple[str, ...]:
        # The parser writes the node's name into the metadata; the layer's own may have a number
        # behind it.
        written = (
            (layer, re.fullmatch(r"\[ONNX Layer: (.*)\]", layer.metadata))
            for layer in self._layers(kind)
        )
        return tuple(found[1] if found else str(layer.name) for layer, found in written)

    def _layers(self, kind_name: str | None = None) -> Iterator[Any]:
        # Older versions have no attention, and then no layer of that kind.
        kind = getattr(self._trt.LayerType, kind_name, None) if kind_name else None
        layers = map(self.network.get_layer, range(self.network.num_layers))
        return (layer for layer in layers if kind_name is None or layer.type == kind)
