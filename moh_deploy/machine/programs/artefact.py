"""Loads a package or an engine, as `moh-deploy run` would."""

from __future__ import annotations

from pathlib import Path

from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.onnxruntime.session import open_session, runtime_name
from moh_deploy.runtime.tensorrt.engine import Engine
from moh_deploy.runtime.tensorrt.engine_reading import is_engine_dir
from moh_deploy.runtime.tensorrt.flavour import FLAVOURS


def main(root: str) -> dict[str, object]:
    if is_engine_dir(root):
        with Engine(root) as engine:
            title = FLAVOURS[engine.manifest.backend].title
            return {"how": f"{title} {engine.manifest.versions[title]}"}
    runner = open_session(OnnxPackage.open(Path(root)))
    impls = list(runner.layer_impl.values())
    kernels, functions = impls.count("kernel"), len(impls) - impls.count("kernel")
    return {"how": f"{runtime_name()}, {kernels} nodes on a kernel, {functions} as functions"}
