"""Prove that a package computes what it should."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from moh_deploy.errors import ConfigError
from moh_deploy.package import Runtime
from moh_deploy.report.baseline.ratchet import Ratchet
from moh_deploy.runtime.kernel_use import Kernels
from moh_deploy.system.npz import Array
from moh_deploy.system.progress import Progress, SilentProgress
from moh_deploy.validate.accuracy.metric_parity import Better
from moh_deploy.validate.accuracy.task import Labelling, ScoreFunction, Task
from moh_deploy.validate.compare.baseline_figures import parity_figures
from moh_deploy.validate.compare.parity_report import ParityReport
from moh_deploy.validate.compare.policy import (
    BUILT_IN_POLICY,
    better_of,
    metrics_of,
    parse_conditions,
    read_policy,
)
from moh_deploy.validate.compare.verify_labels import verify_labelled
from moh_deploy.validate.compare.verify_runs import WhatToRun, verify_runs
from moh_deploy.validate.reference.reference import read_subject
from moh_deploy.validate.reference.references import Against
from moh_deploy.validate.reference.samples import named_mask

Metrics = str | ScoreFunction | Sequence[str | ScoreFunction]


def verify(
    package_dir: Path | str,
    *,
    inputs: Sequence[Path | str] = (),
    runtime: Runtime | None = None,
    kernels: Kernels = "auto",
    vectors: int | None = None,
    package: Path | str | None = None,
    policy: Path | str | None = None,
    against: Sequence[Against] = (),
    baseline_file: Path | str | None = None,
    update_baseline: bool = False,
    labels: Path | str | Array | None = None,
    metric: Metrics = (),
    better: Better | None = None,
    within: str | Sequence[str] = (),
    label_output: str | None = None,
    ignore_label: int = -100,
    shift_labels: bool = False,
    batch_size: int | None = None,
    code_dirs: Sequence[Path | str] = (),
    valid_tokens: str | None = None,
    staged: bool = False,
    progress: Progress | None = None,
) -> ParityReport:
    """Compare what a package, or an engine, computes with one reference or several.

    Without `inputs` and `against` the reference is what the original model computed when the
    package was made. Where kernels run, function bodies are compared with it too: on one
    recorded run, or on all if the kernels round operands (`compute_type`). For a file in `inputs`
    it is the expected outputs that the file holds, or, if it holds none, the package's own function
    bodies run with all optimisations off: that proves that kernels and graph optimisations change
    nothing, not that the package equals the original model. Without both, the regression corpus of
    the package is run too, if it has one: it says what recorded it.

    An engine gives no gates, so only outputs are compared, on the recorded runs of sizes that it
    was built for.

    Args:
        package_dir: The package, or the engine directory.
        inputs: npz files, or directories of them. Members are named like the model's inputs; or all
            otherwise, in their order, which the report then says; and like its outputs for expected
            outputs.
        runtime: `onnxruntime`, `openvino` or `onnxruntime-cuda`: what runs a package; None for
            what it was tuned for, or else ONNX Runtime. An engine has its own.
        kernels: What runs MoH nodes, see `Variant`.
        vectors: Compare with the first so many recorded runs only; None takes all. The first is the
            one at the example's sizes.
        package: The package that an engine was built from; for a package, None.
        policy: YAML file of tolerances over the built-in table, see `read_policy`.
        against: What to compare with instead: `recorded` (what the package recorded, or the files
            hold), `functions`, `kernels`, the path of another package, an engine or an ONNX model,
            or a `Reference`, such as `moh_deploy.load_original` makes of a checkpoint.
        baseline_file: JSON file of what was reached before: what is worse fails, see `ratchet`.
        update_baseline: Write what is new or better into that file, and make it if it is not there.
        labels: Of all samples in `inputs`: [N] classes, or [N, S] tokens. A npy, npz or csv file, a
            member of the inputs files, or an array. Then samples run in batches, and a metric of
            both sides is compared, too, which the policy's section `accuracy` judges.
        metric: `top-1`, `top-5`, `perplexity`, `module:function`, a function (outputs by name,
            labels) -> a score for each sample, or several of them. Without, labels [N] are
            scored by top-1, [N, S] by perplexity.
        better: `higher` or `lower`: which scores of a function are better.
        within: Conditions that have to hold besides, as `tune_within` takes them: `flips <= 0.1 %`;
            with labels `top-1 >= 0.98 * reference`. A metric in one need not be named.
        label_output: The output that is scored, where shapes do not tell.
        ignore_label: Labels of this number are left out.
        shift_labels: Labels are the tokens that the model is given: an output at a position is
            scored with the label of the next.
        batch_size: How many samples run at once; None to choose.
        code_dirs: Directories with the modules of metrics.
        valid_tokens: The input, such as `attention_mask`, or member of the files, that says which
            tokens are valid: [batch, tokens] of 0 and 1; `not NAME`: it is 1 for padding. Padding
            is not compared, in gates and in outputs that have token axes. None takes the input that
            the package names, if it names one; `all` compares all tokens.
        staged: The package is still being written, and its writer asks.
        progress: What to report steps to.

    Returns:
        The comparison. Look at `equal`, or call `raise_if_unequal`. With several references it is
        equal if all comparisons are; `comparisons` has them apart.

    Raises:
        PackageError: Not a package, or one that has changed since it was written.
        ConfigError: An input file does not fit the model, `vectors` is below 1 or given together
            with `inputs`, `against` names nothing to compare with, or the baseline file is missing
            or of another package.
        BackendError: The runtime failed, or the engine cannot run here.
    """
    progress = progress or SilentProgress()
    if vectors is not None and vectors < 1:
        raise ConfigError(f"vectors is {vectors}, expected at least 1: nothing would be compared.")
    if vectors is not None and inputs:
        raise ConfigError(
            "vectors chooses among recorded runs, and inputs replaces them: give one."
        )
    ratchet = Ratchet.open(baseline_file, "verify", update=update_baseline)
    rules = BUILT_IN_POLICY if policy is None else read_policy(Path(policy))
    conditions = parse_conditions([within] if isinstance(within, str) else within) if within else ()
    asked = metrics_of(conditions, has_labels=labels is not None)
    rules = rules.within(conditions)
    source = None if package is None else Path(package)
    # These would be ignored without a word.
    of_labels = (metric, better, label_output, shift_labels, batch_size, ignore_label != -100)
    if labels is None and any(of_labels):
        raise ConfigError("a metric, or how to score, is named, and no labels: name --labels.")
    if labels is None:
        rules.check_metrics(())
    with progress.step("reading what is compared"):
        subject = read_subject(Path(package_dir), source, kernels, runtime, staged=staged)
        mask = named_mask(subject.package.manifest, valid_tokens)
    # Without labels files are runs to compare; with them they hold samples, which run in batches.
    paths = list(map(Path, inputs))
    if labels is None:
        what = WhatToRun(paths, vectors, mask, bodies=True)
        report = verify_runs(subject, what, against=against, policy=rules, progress=progress)
    else:
        named = (metric,) if isinstance(metric, str) or callable(metric) else tuple(metric)
        task = Task(
            labels if isinstance(labels, (str, Path)) else np.asarray(labels),
            (*named, *(name for name in asked if name not in named)),
            better or better_of(conditions),
            label_output,
            Labelling(ignore_label, shift_labels),
            batch_size,
            tuple(map(Path, code_dirs)),
            mask,
        )
        report = verify_labelled(
            subject, paths, task, against=against, policy=rules, progress=progress
        )
    # A comparison that failed says nothing of what was reached.
    if ratchet is None or not report.equal:
        return report
    return replace(report, ratchet=ratchet.judge(parity_figures(report, ratchet.path)))
