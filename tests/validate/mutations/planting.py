"""Plant every fault in every layer of a model's package, and ask `verify`."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import onnx

from moh_deploy.package import OnnxPackage
from moh_deploy.package.vectors import VECTORS_NAME
from tests.validate.mutations.choices import chosen_by_size, run_so
from tests.validate.mutations.effects import (
    LEAST_FLOOR,
    Effect,
    Runs,
    differences,
    effects,
    values_as_run,
    wide_values,
)
from tests.validate.mutations.faults import FAULTS, SEEN_BY_KERNELS_ONLY, plant
from tests.validate.mutations.packages import Precision, package_of, write_package
from tests.validate.mutations.sessions import one_thread
from tests.validate.mutations.site import DoesNotApplyError
from tests.validate.mutations.verdicts import Verdict, verdict_of
from tests.zoo import ZooModel

WITHOUT_EFFECT = 3.0
"""A fault is one where it moves some value by this many times what rounding does."""


@dataclass(frozen=True)
class Planted:
    """One fault in one layer, and the answer.

    Attributes:
        effects: Of each value, the largest ratio first.
        beside: Of a fault that kernels alone see: the answer to function bodies, which are right.
        right_is_refused: So is the package without any fault, which tells nothing of faults then.
    """

    model: str
    precision: Precision
    layer: str
    index: int
    fault: str
    effects: tuple[Effect, ...]
    verdict: Verdict
    beside: Verdict | None = None
    right_is_refused: bool = False

    @property
    def ratio(self) -> float:
        return self.effects[0].ratio

    @property
    def has_effect(self) -> bool:
        return self.ratio >= WITHOUT_EFFECT

    @property
    def is_in_scores_only(self) -> bool:
        """Tell whether a router's scores move, and nothing else does as much. Where gates are 0 and
        1, scores count by their order alone."""
        others = [effect for effect in self.effects if not effect.value.startswith("scores/")]
        return self.has_effect and all(other.ratio < WITHOUT_EFFECT for other in others)

    @property
    def named_rightly(self) -> bool:
        return self.layer in self.verdict.named

    @property
    def others_named(self) -> tuple[str, ...]:
        return tuple(path for path in self.verdict.named if path != self.layer)

    def to_json(self) -> dict[str, object]:
        """Return all of it in plain JSON types."""
        found = asdict(self)
        found["effects"] = {
            effect.value: {"size": effect.size, "floor": effect.floor, "ratio": effect.ratio}
            for effect in self.effects
        }
        return {
            **found,
            "ratio": self.ratio,
            "in_scores_only": self.is_in_scores_only,
            "named_rightly": self.named_rightly,
        }


@dataclass
class FaultInjection:
    """The packages of one model, and what is measured of them once.

    Attributes:
        directory: Where packages and effects are kept.
        scratch: Where faulted packages are written, one over the other.
        by_size: Write them with a choice by size for every layer: their nodes stand in branches.
        skipped: Fault and number of the layer to why it does not apply there.
    """

    model: ZooModel
    directory: Path
    scratch: Path
    by_size: bool = False
    skipped: dict[tuple[str, int], str] = field(default_factory=dict)
    _floors: dict[Precision, dict[str, float]] = field(default_factory=dict)
    _refused: dict[Precision, bool] = field(default_factory=dict)

    @cached_property
    def package(self) -> OnnxPackage:
        return package_of(self.model, self.directory)

    @cached_property
    def onnx_model(self) -> onnx.ModelProto:
        return onnx.load(self.package.model_path)

    @cached_property
    def right(self) -> Runs:
        """The right model's values in float64."""
        return wide_values(self.onnx_model, self.package)

    def floors(self, precision: Precision) -> dict[str, float]:
        """Return how far rounding moves each value of the right package, with kernels or without:
        the larger of the two."""
        if precision not in self._floors:
            package = package_of(self.model, self.directory, precision)
            off, on = (
                differences(self.right, values_as_run(package, kernels))
                for kernels in ("off", "auto")
            )
            self._floors[precision] = {name: max(off[name], on[name]) for name in off}
        return self._floors[precision]

    def plant_all(
        self,
        precision: Precision,
        *,
        faults: Collection[str] = tuple(FAULTS),
        layers: Callable[[int], bool] = lambda index: True,
    ) -> Iterator[Planted]:
        """Yield the answer for every fault in every layer; what does not apply is in `skipped`."""
        with one_thread():
            yield from self._plant_all(precision, faults, layers)
        self._keep_effects()

    def _plant_all(
        self, precision: Precision, faults: Collection[str], layers: Callable[[int], bool]
    ) -> Iterator[Planted]:
        floors = self.floors(precision)
        for index in filter(layers, range(len(self.package.manifest.layers))):
            for fault in faults:
                try:
                    wrong = plant(
                        fault,
                        self.onnx_model,
                        self.package.manifest.layers,
                        index,
                        self.package.vectors,
                    )
                except DoesNotApplyError as error:
                    self.skipped[fault, index] = str(error)
                    continue
                yield self._judged(fault, index, wrong, precision, floors)

    def _judged(
        self,
        fault: str,
        index: int,
        wrong: onnx.ModelProto,
        precision: Precision,
        floors: dict[str, float],
    ) -> Planted:
        layers = self.package.manifest.layers
        sizes = self._effect(fault, wrong)
        package = self._written(wrong, precision)
        beside = None
        if fault in SEEN_BY_KERNELS_ONLY:
            beside = verdict_of(package.root, layers, kernels="off")
        return Planted(
            self.model.name,
            precision,
            layers[index].path,
            index,
            fault,
            tuple(effects(sizes, floors, LEAST_FLOOR[precision])),
            verdict_of(package.root, layers),
            beside,
            self._right_is_refused(precision),
        )

    def _written(self, wrong: onnx.ModelProto, precision: Precision) -> OnnxPackage:
        layers = chosen_by_size(self.package) if self.by_size else None
        if layers is not None:
            wrong = run_so(wrong, layers)
        return write_package(self.package, self.scratch, wrong, precision=precision, layers=layers)

    def _right_is_refused(self, precision: Precision) -> bool:
        if precision not in self._refused:
            right = package_of(self.model, self.directory, precision)
            verdict = verdict_of(right.root, right.manifest.layers)
            self._refused[precision] = verdict.refused
        return self._refused[precision]

    def _effect(self, fault: str, wrong: onnx.ModelProto) -> dict[str, float]:
        content = wrong.SerializeToString(deterministic=True)
        recorded = self.package.manifest.files[VECTORS_NAME]
        key = hashlib.sha256(content + recorded.encode()).hexdigest()
        if key not in self._known_effects:
            if fault in SEEN_BY_KERNELS_ONLY:
                runs = values_as_run(write_package(self.package, self.scratch, wrong), "auto")
            else:
                runs = wide_values(wrong, self.package)
            self._known_effects[key] = differences(self.right, runs)
        return self._known_effects[key]

    @property
    def _effects_file(self) -> Path:
        return self.directory / "effects" / f"{self.model.name}.json"

    @cached_property
    def _known_effects(self) -> dict[str, dict[str, float]]:
        path = self._effects_file
        return json.loads(path.read_text()) if path.is_file() else {}

    def _keep_effects(self) -> None:
        self._effects_file.parent.mkdir(exist_ok=True)
        self._effects_file.write_text(json.dumps(self._known_effects))
