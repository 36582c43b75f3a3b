"""Builds an engine with TensorRT-RTX: run as a program, since its parser may abort the process.

    python rtx_build.py REQUEST.json

with the keys `model`, `library` (or null), `profiles` (a list of {input: [min, opt, max]}),
`compute_capabilities` and `engine` (where to write it). Prints what happened as JSON.
"""

import json
import sys
from pathlib import Path

import tensorrt_rtx as trt

PARENT = trt.ILogger


class Log(PARENT):
    """Keeps what is at least a warning, and names of plugins that were found."""

    def __init__(self) -> None:
        PARENT.__init__(self)
        self.lines: list[str] = []

    def log(self, severity: trt.ILogger.Severity, message: str) -> None:
        if severity <= trt.ILogger.Severity.WARNING or "plugin" in message:
            self.lines.append(f"{severity.name}: {message}")


def main(request: dict) -> dict:
    log = Log()
    loaded = None
    if request["library"] is not None:
        loaded = trt.get_plugin_registry().load_library(request["library"])
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    parsed = parser.parse(Path(request["model"]).read_bytes())
    found = {
        "loaded": loaded is not None,
        "parsed": parsed,
        "errors": [str(parser.get_error(i)) for i in range(parser.num_errors)],
        "layers": [str(network.get_layer(i).type).split(".")[1] for i in range(len(network))],
        "plugins": [_plugin(network, i) for i in range(len(network))],
        "outputs": [_tensor(network.get_output(i)) for i in range(network.num_outputs)],
        "engine_bytes": 0,
    }
    found["plugins"] = [name for name in found["plugins"] if name]
    if parsed:
        engine = builder.build_serialized_network(network, _config(builder, request))
        if engine is not None:
            Path(request["engine"]).write_bytes(engine)
            found["engine_bytes"] = engine.nbytes
    return {**found, "log": "\n".join(log.lines)}


def _plugin(network: trt.INetworkDefinition, index: int) -> str | None:
    layer = network.get_layer(index)
    if layer.type != trt.LayerType.PLUGIN_V3:
        return None
    layer.__class__ = trt.IPluginV3Layer
    core = layer.plugin.get_capability_interface(trt.PluginCapabilityType.CORE)
    return core.plugin_name


def _tensor(tensor: trt.ITensor) -> list:
    return [tensor.name, list(tensor.shape), tensor.dtype.name]


def _config(builder: trt.Builder, request: dict) -> trt.IBuilderConfig:
    config = builder.create_builder_config()
    names = request["compute_capabilities"]
    config.num_compute_capabilities = len(names)
    for i, name in enumerate(names):
        config.set_compute_capability(getattr(trt.ComputeCapability, name), i)
    for shapes in request["profiles"]:
        profile = builder.create_optimization_profile()
        for name, sizes in shapes.items():
            profile.set_shape(name, *map(tuple, sizes))
        config.add_optimization_profile(profile)
    return config


if __name__ == "__main__":
    print(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
