"""Write a package again in lower precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

from moh_deploy.api.verify import verify
from moh_deploy.config.dtypes import FEW_BITS, Scales, dtype_named, either
from moh_deploy.derive.precision import LOWER_PRECISIONS, PrecisionReport, write_precision
from moh_deploy.errors import ConfigError
from moh_deploy.package import OnnxPackage, check_package_output
from moh_deploy.system.npz import Array
from moh_deploy.system.progress import Progress, SilentProgress
from moh_deploy.validate.compare.parity_report import ParityReport
from moh_deploy.validate.reference.calibration import calibration_runs


def precision(
    package_dir: Path | str,
    *,
    to: str,
    output: Path | str,
    float32: Sequence[str] = (),
    scales: Scales = "dynamic",
    within: str | Sequence[str] = (),
    inputs: Sequence[Path | str] = (),
    judge: Sequence[Path | str] = (),
    labels: Path | str | Array | None = None,
    label_output: str | None = None,
    ignore_label: int = -100,
    shift_labels: bool = False,
    batch_size: int | None = None,
    code_dirs: Sequence[Path | str] = (),
    progress: Progress | None = None,
) -> PrecisionReport:
    """Write a package whose graph says, by its types, where lower precision is used.

    In half precision products and activations are low; the scores, softmax, choice and gates of
    routers, norms and other reductions stay in float32, and so does what left the range of float16
    on the recorded inputs. In int8 products with stored weights are, and what they read is rounded
    when it is met; all else stays in float32, and products that make nothing but scores of routers
    do. In int4 their weights are, in blocks with a scale each, and what they read is rounded to 8
    bits. Inputs and outputs of the model keep their dtypes, except caches that are written in
    place: they are kept in half precision from call to call.

    Args:
        package_dir: A package in float32.
        to: `float16`, `bfloat16`, `int8` or `int4`.
        output: The package directory to write.
        float32: With `int8` and `int4`: names of products that stay in float32.
        scales: With `int8`: `dynamic` measures the scale of what a product reads in each run,
            `static` stores it. OpenVINO multiplies integers in a package with static ones.
        within: Conditions that have to hold besides, as `tune_within` takes them. With these,
            `inputs` or `labels`, the new package is compared with the float32 one, too; they and
            the options up to `code_dirs` are those of `verify`.
        inputs: With static scales what these are made of, and `judge` is compared instead: no
            sample may be in both, nor a recorded one.
        judge: npz files, or directories of them, as `inputs` without static scales.
        progress: What to report steps to.

    Raises:
        ConfigError: `to` is another word, the package is not in float32, or has no product that
            could be in integers; scales are static and inputs are missing, or judge as well.
        PackageError: Not a package, or the output cannot be written.
        ValidationError: The package, or the new one, differs from the original model by more than
            the rule for its precision allows, or a condition does not hold. Nothing is written.
    """
    progress, output = progress or SilentProgress(), Path(output)
    low = dtype_named(to, LOWER_PRECISIONS, option="to")
    if float32 and low not in FEW_BITS:
        raise ConfigError(
            f"float32 names products, which is for {' and '.join(FEW_BITS)}; to is {low}.",
            hint="`moh-deploy bisect` finds the operators that have to stay in float32.",
        )
    if scales not in get_args(Scales):
        raise ConfigError(f"scales is '{scales}', expected {either(get_args(Scales))}.")
    is_static = scales == "static"
    if is_static and low != "int8":
        raise ConfigError(
            f"static scales are of int8, and to is {low}.", hint="Leave scales out, or use int8."
        )
    if judge and not is_static:
        raise ConfigError(
            "judge is for static scales, which inputs are used up for.",
            hint="Without static scales inputs judge the package.",
        )
    check_package_output(output, made_of=Path(package_dir))
    with progress.step("reading the package"):
        package = OnnxPackage.open(package_dir)
        calibration: Sequence[Mapping[str, Array]] = ()
        if is_static:
            calibration = calibration_runs(package, [*map(Path, inputs)], [*map(Path, judge)])
            inputs = judge

    def beside(written: Path) -> ParityReport:
        return verify(
            written,
            staged=True,
            against=[package.root],
            inputs=inputs,
            labels=labels,
            within=within,
            label_output=label_output,
            ignore_label=ignore_label,
            shift_labels=shift_labels,
            batch_size=batch_size,
            code_dirs=code_dirs,
            progress=progress,
        )

    is_compared = within or inputs or labels is not None
    return write_precision(
        package,
        low,
        output,
        progress,
        float32=float32,
        calibration=calibration,
        beside=beside if is_compared else None,
    )
