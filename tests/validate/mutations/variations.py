"""What a package may do, and still is the model: `verify` must accept all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

import moh_deploy
from moh_deploy.backends.runner import Kernels
from moh_deploy.errors import ConfigError, MoHDeployError
from moh_deploy.npz import write_npz
from moh_deploy.package import OnnxPackage, with_choices
from moh_deploy.passes import choose_layers
from tests.validate.mutations.packages import Precision, package_of, write_package
from tests.validate.mutations.sessions import session_settings
from tests.validate.mutations.site import DoesNotApplyError, Site
from tests.validate.mutations.verdicts import Verdict, verdict_of
from tests.zoo import ZooModel


@dataclass(frozen=True)
class Varied:
    """One variation of one package, and the answer."""

    model: str
    precision: Precision
    variation: str
    verdict: Verdict

    def to_json(self) -> dict[str, object]:
        """Return all of it in plain JSON types."""
        return asdict(self)


def vary_all(
    model: ZooModel, directory: Path, scratch: Path, precision: Precision, *, opsets: bool
) -> Iterator[Varied]:
    """Yield the answer for every variation that a model's package has.

    Args:
        opsets: Export the model anew for each other opset, which takes seconds.
    """
    package = package_of(model, directory, precision)

    def judged(
        variation: str,
        root: Path,
        *,
        kernels: Kernels = "auto",
        under: AbstractContextManager[object] | None = None,
        **options: object,
    ) -> Varied:
        with under or nullcontext():
            verdict = verdict_of(root, package.manifest.layers, kernels, **options)
        return Varied(model.name, precision, variation, verdict)

    yield judged("kernels", package.root)
    yield judged("function bodies", package.root, kernels="off")
    for threads in (1, 2):
        settings = session_settings(intra_op_num_threads=threads)
        yield judged(f"{threads} thread{'s'[: threads - 1]}", package.root, under=settings)
    unoptimised = session_settings(
        graph_optimization_level=ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    )
    yield judged("optimisations off", package.root, under=unoptimised)
    for name, choices in _choices(package).items():
        chosen = _with_choices(package_of(model, directory), choices, scratch, precision)
        if chosen is not None:
            yield judged(f"choice {name}", chosen.root)
    for name, change in _CHANGES.items():
        changed = _changed(package_of(model, directory), change, scratch, precision)
        if changed is not None:
            yield judged(name, changed.root)
            yield judged(f"{name}, function bodies", changed.root, kernels="off")
    original = moh_deploy.load_original(model.build())
    for seed in (1, 2, 3):
        inputs = _other_inputs(model, scratch.with_suffix(".npz"), seed)
        yield judged(f"inputs of seed {seed}", package.root, inputs=[inputs], against=[original])
    yield judged("recorded inputs, original", package.root, against=[original])
    yield judged("function bodies as reference", package.root, against=["functions"])
    if precision != "float32":
        yield _by_precision(model, directory, scratch, precision)
    for opset in (18, 21, 22) if opsets else ():
        other = package_of(model, directory, precision, opset=opset)
        yield judged(f"opset {opset}", other.root)


def _by_precision(model: ZooModel, directory: Path, scratch: Path, precision: Precision) -> Varied:
    """Let `precision` write the package: it compares with every result rounded, too."""
    root = package_of(model, directory).root
    try:
        moh_deploy.precision(root, to=precision, output=scratch)
        verdict = Verdict(False, "")
    except MoHDeployError as error:
        verdict = Verdict(True, str(error))
    return Varied(model.name, precision, "every result rounded", verdict)


def _choices(package: OnnxPackage) -> dict[str, dict[str, str]]:
    """Return what may be chosen for all layers; by size, some recorded runs are on each side."""
    fixed = {choice: {"all": choice} for choice in ("dense", "sparse", "projected")}
    dims = package.manifest.dims
    for dim in dims:
        sizes = sorted({one.sizes[dim] for one in package.vectors})
        if len(sizes) > 1:
            by_size = {f"all[{dim}<={sizes[0]}]": "dense", "all": "sparse"}
            return {**fixed, "by size": by_size}
    return fixed


def _with_choices(
    package: OnnxPackage, choices: Mapping[str, str], scratch: Path, precision: Precision
) -> OnnxPackage | None:
    """Return the package with its layers run in another way; None if they cannot be, or are."""
    try:
        layers = with_choices(package.manifest.layers, choices, dims=tuple(package.manifest.dims))
    except ConfigError:
        return None
    if layers == package.manifest.layers:
        return None
    model = ir.load(package.model_path)
    choose_layers(model, layers)
    return write_package(package, scratch, ir.to_proto(model), precision=precision, layers=layers)


def _changed(
    package: OnnxPackage, change: Callable[[Site], None], scratch: Path, precision: Precision
) -> OnnxPackage | None:
    """Return the package with every layer changed that can be; None if none can."""
    model = onnx.load(package.model_path)
    layers, lacking = package.manifest.layers, 0
    for index in range(len(layers)):
        with suppress(DoesNotApplyError):
            change(Site(model, layers, index, package.vectors))
            continue
        lacking += 1
    if lacking == len(layers):
        return None
    return write_package(package, scratch, model, precision=precision)


def _times_one(site: Site) -> None:
    """An operator that changes nothing stands between router and attention."""
    raw, hand_on = site.behind(site.layer.gates)
    one = site.put_constant(np.ones((), np.float32), "one")
    site.instead(hand_on, site.add("Mul", [raw, one], hand_on))


def _ties_to_the_higher_index(site: Site) -> None:
    """Heads are ranked from the last to the first: what ties is chosen in another order."""
    value, router, routed = site.routed_logits(), site.router(), site.num_routed()
    shared = site.attribute(router, "num_shared_heads")
    backwards = site.put_constant(np.arange(routed)[::-1].astype(np.int64), "backwards")
    router.input[0] = site.add("Gather", [value, backwards], router, axis=-1)
    raw, hand_on = site.behind(router.output[0])
    order = [*range(shared), *reversed(range(shared, shared + routed))]
    forwards = site.put_constant(np.asarray(order, np.int64), "forwards")
    site.instead(hand_on, site.add("Gather", [raw, forwards], hand_on, axis=-1))


def _unpacked_scale(site: Site) -> None:
    """The scale is in the weights of the queries in place of the node: rounded elsewhere."""
    attention, linear = site.attention(), site.linear("q")
    if attention.op_type != "MoHAttention" or linear.node.op_type != "MoHQueryProjection":
        raise DoesNotApplyError("no scale that could move")
    if site.maker(attention.input[0]) is not linear.node:
        raise DoesNotApplyError("something stands between")
    found = next(one for one in attention.attribute if one.name == "scale")
    factor, found.f = found.f * 2, 0.5
    site.set_weight(linear, linear.weight * factor)
    if linear.bias is not None:
        site.set_bias(linear, linear.bias * factor)


_CHANGES: Mapping[str, Callable[[Site], None]] = {
    "gates x 1.0": _times_one,
    "ties to the higher index": _ties_to_the_higher_index,
    "scale moved into weights": _unpacked_scale,
}


def _other_inputs(model: ZooModel, path: Path, seed: int) -> Path:
    """Write other floats of the same shapes, and inputs that are no floats as they are."""
    draw = np.random.default_rng(seed)
    arrays = {}
    for each in model.inputs():
        value = each.value.numpy()
        if value.dtype == np.float32:
            value = draw.standard_normal(value.shape).astype(np.float32)
        elif value.dtype == np.int64 and value.size > 4:
            value = draw.permuted(value, axis=-1)
        arrays[each.name] = value
    write_npz(path, arrays)
    return path
