"""Write a language model's package as a directory that onnxruntime-genai opens, and prove one."""

from __future__ import annotations

from pathlib import Path

from moh_deploy.errors import ConfigError
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import Model
from moh_deploy.runtime.open_runner import opened_package
from moh_deploy.runtime.original import Original, OriginalModel
from moh_deploy.serving.genai.bundle import PACKAGE_FOLDER, GenaiBundleReport, write_genai_bundle
from moh_deploy.serving.genai.verify import GenaiVerification, verify_genai
from moh_deploy.system.progress import Progress, SilentProgress
from moh_deploy.validate.compare.parity import require_equal


def bundle_for_genai(
    package_dir: Path | str,
    output: Path | str,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> GenaiBundleReport:
    """Write a bundle that `onnxruntime_genai.Model(DIR)` opens: model, kernels, tokenizer.

    Args:
        package_dir: A package that `export --task text-generation` made; its caches may be in
            place, and its weights of 4 bits.
        output: The directory to write; an earlier bundle for genai is replaced.
        threads: Threads within an operator; None for the runtime's own choice.
        progress: What to report steps to.

    Raises:
        ConfigError: genai has no words for something of this model.
        PackageError: It is no decoder's package, has no tokenizer, or has changed; or the bundle
            cannot be written.
        ValidationError: `verify` refuses the package.
    """
    progress = progress or SilentProgress()
    if threads is not None and threads < 1:
        raise ConfigError(f"threads is {threads}, expected 1 or more.")
    with progress.step("reading the package"):
        package = OnnxPackage.open(package_dir)
    with progress.step("comparing the package with the original model"):
        require_equal(package)
    with progress.step("writing the bundle"):
        written = write_genai_bundle(package, Path(output), threads=threads)
    return GenaiBundleReport(Path(output), written)


def verify_genai_bundle(
    root: Path | str,
    *,
    against: Path | str | Original | None = None,
    trust_code: bool = False,
    progress: Progress | None = None,
) -> GenaiVerification:
    """Run a bundle by onnxruntime-genai, and compare its greedy tokens with a reference's.

    The package in the bundle is compared with what the original recorded, too. Up to 64 tokens are
    generated behind three prompts of 1, 7 and 40 tokens, in one batch with padding.

    Args:
        root: The bundle.
        against: A package, or what `load_original` returns; None: the bundle's package on function
            bodies.
        trust_code: Run native code of the bundle that is not of this installation.
        progress: What to report steps to.

    Returns:
        The comparison. Look at `equal`, or at `failure`.

    Raises:
        ConfigError: It has native code that is not trusted.
        BackendError: `onnxruntime-genai` is not installed, does not open the bundle, or fails.
        PackageError: It is no bundle for genai, or has changed.
        ValidationError: Its package is not equal to what was recorded.
    """
    root, progress = Path(root), progress or SilentProgress()
    reference: Model | None = None
    if isinstance(against, (str, Path)):
        reference = opened_package(OnnxPackage.open(against))
    elif against is not None:
        reference = OriginalModel.of(against, OnnxPackage.open(root / PACKAGE_FOLDER).manifest)
    return verify_genai(root, reference, progress, trust_code=trust_code)
