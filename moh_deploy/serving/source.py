"""Run the batches of a served model: one runner, or a guard with several."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from moh_deploy import native
from moh_deploy.config.checked_yaml import require_trust
from moh_deploy.errors import ValidationError
from moh_deploy.package import (
    MODEL_DATA_NAME,
    MODEL_NAME,
    LayerRounding,
    OnnxPackage,
    Rounding,
    Spread,
    TensorInfo,
)
from moh_deploy.package.writer import model_bytes
from moh_deploy.runtime.base import Deployed, Description, Runner, Variant
from moh_deploy.runtime.variants import PackageVariants
from moh_deploy.serving.metrics import Family
from moh_deploy.system.bounded_file import sha256_of
from moh_deploy.system.npz import Array
from moh_deploy.validate.compare.noise_floor import NOISE, STEPS
from moh_deploy.validate.compare.parity import compare
from moh_deploy.validate.reference.reference import recorded_words


def require_own_code(root: Path, *, trust_code: bool) -> None:
    """Refuse a bundle whose native code is not this installation's: opening it runs that code.

    Raises:
        ConfigError: It holds other libraries, and they are not trusted.
    """

    def is_native(file: Path) -> bool:
        with file.open("rb") as opened:
            return opened.read(4) == b"\x7fELF"

    own = {sha256_of(library) for library in native.FOLDER.glob("*.so")}
    named: dict[str, object] = {
        str(entry.relative_to(root)): "native code of another installation"
        for entry in sorted(root.rglob("*"))
        if (entry.is_dir() and entry.is_symlink())  # what it leads to is not looked through
        or (entry.is_file() and is_native(entry) and sha256_of(entry) not in own)
    }
    require_trust(str(root), named, "--trust-code", is_given=trust_code)


# Of a model of more bytes in half precision or few bits no noise floor is measured: it is held to
# the most that its rule allows.
MOST_MEASURED = 256 * 2**20


def require_known_answer(
    model: Deployed, variant: Variant, answering: Runner, reading: Runner | None = None
) -> None:
    """Refuse a model that answers a recorded run wrongly by the rules of `verify`.

    An engine holds no recorded runs, so it is not tried.

    Args:
        variant: In which way. Where a router chose other heads, the model is opened once more, with
            the recorded gates fed to it.
        reading: Returns the gates of all layers, where `answering` does not.

    Raises:
        ValidationError: An output, or a layer, is not as it was recorded.
        BackendError: The runtime failed.
    """
    if model.is_compiled:
        return
    package = model.made_from(None)
    if not package.vectors:
        raise ValidationError(
            f"{model.name} holds no recorded run, so its answers cannot be tried.",
            hint="Export the model again.",
        )
    # The first is that of the example: not of a single token, whose softmax is 1 in any case.
    known = package.vectors[0]
    results = {} if reading is None else reading.run(known.inputs)
    results |= answering.run(known.inputs)
    computed = ComputedResults(results, package.manifest.inputs, answering.describe())
    # Measuring its floor would take more memory than serving it.
    is_large = package.manifest.precision in NOISE and model_bytes(package) > MOST_MEASURED
    variants = PackageVariants(package, replace(variant, extra_outputs=()))
    # A floor only widens what is allowed: what passes without one needs no sessions to measure it.
    ways = [_without_noise(package)] if package.manifest.precision in STEPS else []
    for judged in (*ways, package):
        report = compare(
            judged,
            computed,
            [known],
            reference=recorded_words(package.manifest),
            variants=None if is_large else variants,
        )
        # A tie that cannot be told from an error is no wrong answer: `verify` has all runs.
        if report.answer != "NOT EQUAL":
            return
    library = report.kernels.library
    hint = f"`moh-deploy verify {model.root}` compares all recorded runs."
    if library is not None:
        hint = (
            f"If `moh-deploy verify {model.root} --kernels off` passes, the kernel library"
            f" {library} is at fault: copy or install it again."
        )
    raise ValidationError(
        f"{model.name} answers a recorded run wrongly, so it is not served: {report.reasons[0]}",
        hint=hint,
    )


def _without_noise(package: OnnxPackage) -> OnnxPackage:
    """Return a package of half precision as one that rounding moves by two steps at most."""
    still = Spread(0.0, 0.0)
    rounding = Rounding(
        dict.fromkeys((output.name for output in package.manifest.outputs), still),
        tuple(LayerRounding(still, still, still) for _ in package.manifest.layers),
    )
    return replace(package, manifest=replace(package.manifest, rounding=rounding))


@dataclass(frozen=True)
class ComputedResults(Runner):
    """Results that were computed before, as a runner for `compare`."""

    results: Mapping[str, Array]  # outputs, gates, and as many other inner values as there are
    inputs: tuple[TensorInfo, ...]
    description: Description  # of what computed them

    @property
    def outputs(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(self.results)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return dict(self.results)

    def describe(self) -> Description:
        return self.description


# The name of the model as it is, on whatever kernels there are, as a fallback level.
FIRST_RUNG = "kernels"


@dataclass(frozen=True)
class Ran:
    """A batch that was run."""

    # Outputs of the model, and those of the inner values that what ran has.
    results: Mapping[str, Array]
    rung: str
    seconds: float


class BatchSource(Protocol):
    """Runs batches; several threads may ask at the same time."""

    def run(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        inner: Sequence[str],
        requests: int = 1,
    ) -> Ran:
        """Run a batch whose inputs were checked.

        Args:
            inner: Inner values that are wanted besides.
            requests: How many requests it was made of.

        Raises:
            BackendError: Nothing could run it, or not rightly.
        """

    def describe(self) -> Description:
        """Say what runs each layer."""

    def families(self) -> tuple[Family, ...]:
        """Return what it has counted so far."""

    def close(self) -> None:
        """Give back what it holds."""


@dataclass(frozen=True)
class OneModel:
    """The model as it is: what it computes is the answer."""

    runner: Runner  # runs batches
    # Runs the batches whose inner values are wanted; None where `runner` does.
    reading: Runner | None = None

    def run(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        inner: Sequence[str],
        requests: int = 1,
    ) -> Ran:
        """Run a batch; see `BatchSource.run`."""
        runner = self.reading if inner and self.reading is not None else self.runner
        start = time.perf_counter()
        results = runner.run_returning(inputs, (*outputs, *inner))
        return Ran(results, FIRST_RUNG, time.perf_counter() - start)

    def describe(self) -> Description:
        """Say what runs each layer."""
        return self.runner.describe()

    def families(self) -> tuple[Family, ...]:
        """Return nothing: a runner counts nothing."""
        return ()

    def close(self) -> None:
        """Close all of its runners."""
        self.runner.close()
        if self.reading is not None:
            self.reading.close()


# A model of at most so many bytes is opened twice where inner values are wanted of some runs.
MOST_BYTES_TWICE = 32 * 2**20


def open_model(model: Deployed, inner: Sequence[str], way: Variant) -> OneModel:
    """Open a model whose inner values are wanted of some runs, and try its known answer.

    An output that is declared costs a run some 2 500 instructions, fetched or not: more than a
    hundredth of a model so small that it is hardly more memory to hold it twice.

    Raises:
        BackendError: The runtime is not there, or refuses the model.
        ValidationError: It answers a recorded run wrongly.
    """
    gates = () if model.is_compiled else model.made_from(None).gate_names
    returned = tuple(dict.fromkeys((*inner, *gates)))
    files = (model.root / name for name in (MODEL_NAME, MODEL_DATA_NAME))
    num_bytes = sum(file.stat().st_size for file in files if file.is_file())
    if not returned or num_bytes > MOST_BYTES_TWICE:
        runner = model.open(way.returning(returned))
        require_known_answer(model, way, runner)
        return OneModel(runner)
    runner, reading = model.open(way), model.open(way.returning(returned))
    require_known_answer(model, way, runner, reading)
    if inner:
        return OneModel(runner, reading)
    reading.close()
    return OneModel(runner)


@dataclass(frozen=True)
class ServedRun:
    """A run that was made to answer a batch, for observers."""

    inputs: Mapping[str, Array]
    dims: Mapping[str, int]  # the sizes of its dynamic dimensions
    # Its outputs, and the inner values that the observers wanted of this run, of what the fallback
    # level has: another package lacks them.
    results: Mapping[str, Array]
    # Samples of each request in the batch, in order; a batch that cannot be told apart is one
    # request.
    sizes: tuple[int, ...]
    seconds: float  # how long the run took
    rung: str


class Observer(Protocol):
    """Sees the runs of a served model, from several threads. What it raises is a bug."""

    # Names of the inner values that it may want.
    inner: tuple[str, ...]

    def wanted(self, dims: Mapping[str, int]) -> tuple[str, ...]:
        """Return the inner values that it wants of the run that begins, of these sizes."""

    def saw(self, run: ServedRun) -> None:
        """Take note of a run whose answer is right as far as can be told."""

    def families(self) -> tuple[Family, ...]:
        """Return what it has counted so far."""

    def close(self) -> None:
        """Give back what it holds."""
