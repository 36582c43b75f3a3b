"""Make a runner for Polygraphy of a package, an engine, an ONNX file or an original model."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING

from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import Model, Variant
from moh_deploy.runtime.kernel_use import Kernels
from moh_deploy.runtime.models import PackageDir
from moh_deploy.runtime.open_runner import find_model, onnx_file
from moh_deploy.runtime.original import OriginalModel, RunnableOriginal
from moh_deploy.runtime.tensorrt.engine_contexts import INSTALL, choose_polygraphy
from moh_deploy.runtime.tensorrt.flavour import FLAVOURS
from moh_deploy.runtime.tensorrt.models import EngineDir

if TYPE_CHECKING:
    from moh_deploy.runtime.polygraphy_runner import PolygraphyRunner


def polygraphy_runner(
    source: Path | str | RunnableOriginal,
    *,
    kernels: Kernels = "auto",
    optimize: bool = True,
    gates: bool = False,
    package: Path | str | None = None,
    name: str | None = None,
) -> PolygraphyRunner:
    """Return a model as a `polygraphy.backend.base.BaseRunner`.

    Polygraphy by itself runs a package's function bodies, since it knows no library of operators.

        runners = [
            moh_deploy.polygraphy_runner("build/model"),
            moh_deploy.polygraphy_runner("build/model", kernels="off", optimize=False),
        ]
        results = polygraphy.comparator.Comparator.run(runners, data_loader=[{"x": images}])

    Args:
        source: A package or engine directory, an ONNX file, or an original model that
            `moh_deploy.load_original` returns.
        kernels: What runs MoH nodes, see `Variant`.
        optimize: Let ONNX Runtime rewrite the graph.
        gates: Of a package: return each layer's gates as outputs, too.
        package: Of an original: the package that was made from it, which names its inputs and
            outputs.
        name: What Polygraphy calls its results; None for one that says what runs.

    Raises:
        ConfigError: `source` is something else, or an option does not fit it.
        PackageError: A package or engine cannot be read.
        BackendError: Polygraphy is not installed.
    """
    if importlib.util.find_spec("polygraphy") is None:
        raise BackendError("Polygraphy is not installed.", hint=INSTALL)
    variant = Variant(kernels=kernels, optimize=optimize)
    if isinstance(source, (Path, str)):
        model, variant = _named(Path(source), variant, gates, package)
    else:
        model = _original(source, gates, package)
    from moh_deploy.runtime.polygraphy_runner import PolygraphyRunner

    # The name tells two runners of one package apart in Polygraphy's results.
    how = "" if optimize else ", not optimised"
    is_package = isinstance(model, PackageDir)
    words = f"{model.name}, kernels: {kernels}{how}" if is_package else model.name
    return PolygraphyRunner(name or words, model, variant)


def _named(
    path: Path, variant: Variant, gates: bool, package: Path | str | None
) -> tuple[Model, Variant]:
    """Return the model that a path names, and the way in which it is to be opened."""
    if package is not None:
        raise ConfigError(f"package is {package}, but {path} is no original model: leave it out.")
    # What is nothing else is an ONNX model: opening it says why not.
    model = (find_model(path) if os.path.exists(path) else None) or onnx_file(path)
    if isinstance(model, PackageDir):
        return model, variant.returning(model.package.gate_names if gates else ())
    if gates:
        raise ConfigError(f"gates are asked of {path}, and a package alone has them.")
    if isinstance(model, EngineDir):
        # Before Polygraphy is imported: it decides then which TensorRT it uses.
        choose_polygraphy(FLAVOURS[model.manifest.backend])
    return model, variant


def _original(source: RunnableOriginal, gates: bool, package: Path | str | None) -> Model:
    if gates:
        raise ConfigError(
            "gates are asked of an original model, which runs as it is.",
            hint="moh_deploy.verify compares its routing: against=[moh_deploy.load_original(...)].",
        )
    if package is None:
        raise ConfigError(
            "an original model has no names for its inputs and outputs.",
            hint="Give the package that was made from it: package=DIR.",
        )
    return OriginalModel.of(source, OnnxPackage.open(package).manifest)
