"""Loads a plugin library into the registry of TensorRT 11 (lean): run as a program.

python lean_registry.py PLUGIN    prints what it found as JSON
"""

import json
import sys

import numpy as np
import tensorrt_lean_bindings as trt


def _ours(registry: trt.IPluginRegistry) -> list[str]:
    return sorted(c.name for c in registry.all_creators if c.plugin_namespace == "moh")


def _create(registry: trt.IPluginRegistry, top_k: int) -> str | None:
    value = trt.PluginField("top_k", np.array([top_k], np.int32), trt.PluginFieldType.INT32)
    creator = registry.get_creator("MoHRouter", "1", "moh")
    fields = trt.PluginFieldCollection([value])
    plugin = creator.create_plugin("layer", fields, trt.TensorRTPhase.RUNTIME)
    if plugin is None:
        return None
    return plugin.get_capability_interface(trt.PluginCapabilityType.CORE).plugin_name


def main(library: str) -> dict:
    registry = trt.get_plugin_registry()
    found = {"version": trt.__version__, "before": _ours(registry)}
    handle = registry.load_library(library)
    found |= {"loaded": handle is not None, "after": _ours(registry)}
    found |= {"good": _create(registry, 2), "bad": _create(registry, -2)}
    registry.deregister_library(handle)
    return {**found, "deregistered": _ours(registry)}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
