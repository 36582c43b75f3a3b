"""Jobs on engines of small models: export, build, verify, time; and ONNX Runtime's CUDA provider.

A job raises the error that a command would end with; its sentence is what the report has of it.
"""

from pathlib import Path

import moh_deploy
from moh_deploy.package import Manifest, OnnxPackage
from tests.cuda.trt.packages import FORMS
from tests.cuda.trt.packages import export as export_form
from tests.gpu.steps import Facts, Json, Wrong

# Those with a MoHAttention of which there is more than one tactic to time.
_TIMED_FORMS = ("dit", "llama")
_TIMED = "timed with gates of which"


def export(form: str, folder: str) -> Facts:
    """Export a model of random weights into `folder/package`."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    package = OnnxPackage.open(export_form(FORMS[form], Path(folder)))
    return {"layers": len(package.manifest.layers), "dims": dict(package.manifest.dims)}


def build(
    form: str,
    package: str,
    engine: str,
    backend: str,
    precision: str,
    ways: str,
    plugin: str | None,
    targets: list[str],
) -> Facts:
    """Build an engine with two profiles, and say what runs its layers.

    Args:
        ways: `kernels`: every layer has to run by one; `fastest`: what is timed as that, or, by
            TensorRT-RTX, estimated; `plain`: none.

    Raises:
        Wrong: TensorRT has not timed what it should have, or not as it documents.
    """
    report = moh_deploy.build(
        Path(package),
        backend=backend,
        output=Path(engine),
        precision=precision,
        plugin=None if plugin is None or ways == "plain" else Path(plugin),
        profiles=two_profiles(OnnxPackage.open(package).manifest),
        compute_capabilities=targets,
        require_kernels=ways == "kernels",
        plain=ways == "plain",
        keep_onnx=ways == "kernels",
    )
    facts: Facts = {
        "built_s": round(report.build_seconds or 0.0, 1),
        "engine_bytes": report.engine_bytes,
        "notes": list(report.notes),
        "tool_lines": list(report.tool_lines),
        "layers": [
            {
                "path": layer.path,
                "attention": layer.moh_impl,
                "router": layer.router_impl,
                "decision": layer.decision,
                "ms": {way: list(ms) for way, ms in layer.times_ms.items()},
            }
            for layer in report.layers
        ],
    }
    if backend != "tensorrt":
        return facts
    log = (Path(engine) / "build.log").read_text(encoding="utf-8", errors="replace")
    if ways == "kernels" and form in _TIMED_FORMS and _TIMED not in log:
        # Else tactics were timed on gates of whatever was in the memory.
        wrong = f"build.log lacks '{_TIMED}': TensorRT has not asked for tactics as it documents"
        raise Wrong(wrong, facts)
    untimed = [layer.decision or "" for layer in report.layers if not layer.times_ms]
    if ways == "fastest" and untimed:
        raise Wrong("; ".join(untimed), facts)
    return facts


def two_profiles(manifest: Manifest) -> list[str]:
    """Return profiles of which each has sizes of recorded runs that the other has not.

    The first ends at the sizes of the example; the second is tuned for those of the next run, which
    are larger.
    """
    small, large = [], []
    for name, size in manifest.dims.items():
        least, most = manifest.dim_ranges.get(name) or (1, None)
        most = 4 * size if most is None else most
        small.append(f"{name}={least}..{size}..{size}")
        large.append(f"{name}={least}..{min(size + 1, most)}..{most}")
    return [",".join(small), ",".join(large)]


def verify(engine: str, package: str) -> Facts:
    """Compare an engine with the recorded runs of the original model.

    Raises:
        Wrong: It differs, or a profile is left out.
    """
    report = moh_deploy.verify(Path(engine), package=Path(package))
    facts: Facts = {"runs": report.vector_sets, "max_abs_error": report.max_abs_error}
    if report.reasons:
        raise Wrong("; ".join(report.reasons), facts)
    recorded = len(OnnxPackage.open(package).vectors)
    if report.vector_sets < recorded:
        raise Wrong(f"{report.vector_sets} of {recorded} recorded runs were compared", facts)
    return facts


def time(engine: str, package: str) -> Facts:
    """Time the GPU at the sizes of each recorded run: kernel by kernel, and as a CUDA graph."""
    with moh_deploy.Engine(Path(engine)) as loaded:
        rows: list[Json] = [
            {
                "sizes": dict(run.sizes),
                "events_ms": round(loaded.gpu_ms(run.inputs), 5),
                "graph_ms": round(loaded.gpu_ms(run.inputs, graph=True), 5),
            }
            for run in OnnxPackage.open(package).vectors
        ]
    return {"times": rows}


def on_onnxruntime(package: str) -> Facts:
    """Compare a package in ONNX Runtime's CUDA provider, every layer on a kernel.

    Raises:
        Wrong: It differs.
    """
    report = moh_deploy.verify(Path(package), runtime="onnxruntime-cuda", kernels="require")
    facts: Facts = {"runs": report.vector_sets, "max_abs_error": report.max_abs_error}
    if report.reasons:
        raise Wrong("; ".join(report.reasons), facts)
    return facts
