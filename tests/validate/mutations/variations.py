"""What a package may do, and still is the model: `verify` must accept all of it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

import moh_deploy
from moh_deploy.errors import MoHDeployError
from moh_deploy.graph.forced_gates import GATES_INPUT
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.kernel_use import Kernels
from moh_deploy.system.npz import write_npz
from tests.validate.mutations.choices import Layers, chosen, chosen_by_size, run_so
from tests.validate.mutations.packages import Precision, package_of, write_package
from tests.validate.mutations.rotary import ROTARY, prompt_of
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


@dataclass
class Subject:
    """The package of a model in one precision.

    Attributes:
        directory: Where packages are kept.
        scratch: Where varied packages are written, one over the other.
    """

    model: ZooModel
    precision: Precision
    directory: Path
    scratch: Path

    @cached_property
    def package(self) -> OnnxPackage:
        return package_of(self.model, self.directory, self.precision)

    @cached_property
    def full(self) -> OnnxPackage:
        """The package in float32."""
        return package_of(self.model, self.directory)

    @cached_property
    def original(self) -> object:
        return moh_deploy.load_original(self.model.build())

    def verified(
        self, root: Path | None = None, *, kernels: Kernels = "auto", **options: object
    ) -> Verdict:
        root = self.package.root if root is None else root
        return verdict_of(root, self.package.manifest.layers, kernels=kernels, **options)

    def write(self, model: onnx.ModelProto, **options: object) -> OnnxPackage:
        return write_package(self.full, self.scratch, model, precision=self.precision, **options)


Variation = Callable[[Subject], Verdict | None]
"""Returns None where the package has no such variation."""


def vary(subject: Subject, names: Iterable[str]) -> Iterator[Varied]:
    """Yield the answer for every one of these variations that a package has."""
    for name in names:
        verdict = VARIATIONS[name](subject)
        if verdict is not None:
            yield Varied(subject.model.name, subject.precision, name, verdict)


def _under(subject: Subject, **settings: object) -> Verdict:
    with session_settings(**settings):
        return subject.verified()


def _chosen(subject: Subject, choose: Callable[[OnnxPackage], Layers | None]) -> Verdict | None:
    """Run all layers in another way."""
    layers = choose(subject.full)
    if layers is None:
        return None
    model = run_so(onnx.load(subject.full.model_path), layers)
    return subject.verified(subject.write(model, layers=layers).root)


def _changed(
    subject: Subject, change: Callable[[Site], None], kernels: Kernels = "auto"
) -> Verdict | None:
    """Change every layer that can be; None if none can."""
    package = subject.full
    model, layers = onnx.load(package.model_path), package.manifest.layers
    lacking = 0
    for index in range(len(layers)):
        with suppress(DoesNotApplyError):
            change(Site(model, layers, index, package.vectors))
            continue
        lacking += 1
    if lacking == len(layers):
        return None
    return subject.verified(subject.write(model).root, kernels=kernels)


def _times_one(site: Site) -> None:
    """An operator that changes nothing stands between router and attention."""
    raw, hand_on = site.behind(site.layer.gates)
    one = site.put_constant(np.ones((), np.float32), "one")
    site.instead(hand_on, site.add("Mul", [raw, one], hand_on))


def _times_one_on_the_way(site: Site) -> None:
    """The same, behind the value that is recorded."""
    attention = site.attention()
    place = GATES_INPUT[attention.op_type]
    one = site.put_constant(np.ones((), np.float32), "one")
    attention.input[place] = site.add("Mul", [attention.input[place], one], attention)


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


def _scale_in_the_weights(site: Site) -> None:
    """The scale is in the weights of the queries in place of the node: rounded elsewhere."""
    attention, linear = site.attention(), site.linear("q")
    if attention.op_type != "MoHAttention" or linear.node.op_type != "MoHQueryProjection":
        raise DoesNotApplyError("no scale that could move")
    if site.maker(attention.input[0]).output[0] != linear.node.output[0]:
        raise DoesNotApplyError("something stands between")
    found = next(item for item in attention.attribute if item.name == "scale")
    factor, found.f = found.f * 2, 0.5
    site.set_weight(linear, linear.weight * factor)
    if linear.bias is not None:
        site.set_bias(linear, linear.bias * factor)


def _on_other_inputs(subject: Subject, seed: int) -> Verdict:
    """Compare with the original on other floats of the same shapes, and the same tokens in another
    order; a mask stays as it is."""
    draw = np.random.default_rng(seed)
    arrays = {}
    for each in subject.model.inputs():
        value = each.value.numpy()
        if value.dtype == np.float32:
            value = draw.standard_normal(value.shape).astype(np.float32)
        elif each.name.endswith("ids"):
            value = draw.permuted(value, axis=-1)
        arrays[each.name] = value
    path = subject.scratch.with_suffix(".npz")
    write_npz(path, arrays)
    return subject.verified(inputs=[path], against=[subject.original])


def _on_a_prompt(subject: Subject, tokens: int) -> Verdict | None:
    """Compare with the original on a prompt that is far longer than the example."""
    if subject.model not in ROTARY:
        return None
    path = subject.scratch.with_suffix(".npz")
    write_npz(path, {"ids": prompt_of(tokens).numpy()})
    return subject.verified(inputs=[path], against=[subject.original])


def _every_result_rounded(subject: Subject) -> Verdict | None:
    """Let `precision` write the package: it compares with every result rounded, too."""
    if subject.precision not in ("float16", "bfloat16"):
        return None
    try:
        moh_deploy.precision(subject.full.root, to=subject.precision, output=subject.scratch)
    except MoHDeployError as error:
        return Verdict(True, str(error))
    return Verdict(False, "")


def _exported_for(subject: Subject, opset: int) -> Verdict:
    package = package_of(subject.model, subject.directory, subject.precision, opset=opset)
    return subject.verified(package.root)


_UNOPTIMISED = ort.GraphOptimizationLevel.ORT_DISABLE_ALL

_CHANGES: Mapping[str, Callable[[Site], None]] = {
    "gates x 1.0": _times_one,
    "gates x 1.0 on the way": _times_one_on_the_way,
    "ties to the higher index": _ties_to_the_higher_index,
    "scale in the weights": _scale_in_the_weights,
}

EXPORTED_ANEW: Mapping[str, Variation] = {
    f"opset {opset}": partial(_exported_for, opset=opset) for opset in (18, 21, 22)
}

AS_PRECISION_WRITES = "every result rounded"

VARIATIONS: Mapping[str, Variation] = {
    "kernels": Subject.verified,
    "function bodies": partial(Subject.verified, kernels="off"),
    "1 thread": partial(_under, intra_op_num_threads=1),
    "2 threads": partial(_under, intra_op_num_threads=2),
    "optimisations off": partial(_under, graph_optimization_level=_UNOPTIMISED),
    **{
        f"choice {choice}": partial(_chosen, choose=partial(chosen, choices={"all": choice}))
        for choice in ("dense", "sparse", "projected")
    },
    "choice by size": partial(_chosen, choose=chosen_by_size),
    **{name: partial(_changed, change=change) for name, change in _CHANGES.items()},
    **{
        f"{name}, function bodies": partial(_changed, change=change, kernels="off")
        for name, change in _CHANGES.items()
    },
    **{f"inputs of seed {seed}": partial(_on_other_inputs, seed=seed) for seed in (1, 2, 3)},
    **{
        f"prompt of {tokens} tokens": partial(_on_a_prompt, tokens=tokens)
        for tokens in (2048, 8192)
    },
    "original as reference": lambda subject: subject.verified(against=[subject.original]),
    "function bodies as reference": lambda subject: subject.verified(against=["functions"]),
    AS_PRECISION_WRITES: _every_result_rounded,
    **EXPORTED_ANEW,
}
