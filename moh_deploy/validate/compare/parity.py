"""Compare a runtime with reference vectors: outputs, chosen heads, gates."""

from __future__ import annotations

from collections.abc import Sequence

from moh_deploy.package import OnnxPackage, VectorSet
from moh_deploy.runtime.base import Runner
from moh_deploy.validate.compare.judge import ComparedSet, Judge
from moh_deploy.validate.compare.parity_report import ParityReport
from moh_deploy.validate.compare.policy import BUILT_IN_POLICY, Policy
from moh_deploy.validate.compare.routing_statistics import joined
from moh_deploy.validate.reference.reference import RECORDED
from moh_deploy.validate.reference.samples import label, own_masks
from moh_deploy.validate.reference.valid_tokens import (
    EVERY_TOKEN,
    ValidTokens,
    count_tokens,
    token_view,
)
from moh_deploy.validate.reference.variants import Variants


def compare(
    package: OnnxPackage,
    runner: Runner,
    vectors: Sequence[VectorSet],
    *,
    labels: Sequence[str] = (),
    valid: Sequence[ValidTokens] | None = None,
    reference: str = RECORDED,
    outputs_only: bool = False,
    variants: Variants | None = None,
    policy: Policy = BUILT_IN_POLICY,
) -> ParityReport:
    """Run every vector set and compare outputs, chosen heads and gates with it.

    Args:
        package: Says which outputs and layers there are.
        runner: A session of it that also returns the values `names_to_return(package)`; those that
            it does not return are not compared.
        vectors: What to run, and what to expect.
        labels: How reports call each of them; empty for their numbers and sizes.
        valid: Which tokens of each of them count; empty for all, None for those that the package
            says are valid.
        reference: Where the expected values come from, for the report.
        outputs_only: The vectors hold no gates, and maybe not every output: compare what they hold.
        variants: Opens the model with gates fed to it. Without, what is behind a flip is judged by
            a looser rule, and half precision by the most that its rule allows.
        policy: What counts as equal.

    Raises:
        ConfigError: The vectors' inputs do not fit the model.
        BackendError: The runtime failed.
    """
    # Scores and fingerprints are fetched only if there is something to compare them with.
    has_inner = not outputs_only and any(
        vector_set.scores or vector_set.attention for vector_set in vectors
    )
    # Forced routing needs gates to feed, so outputs alone are judged without variants.
    judge = Judge(package, runner, policy, None if outputs_only else variants, has_inner)
    names = labels or [
        label(str(index), vector_set.sizes) for index, vector_set in enumerate(vectors)
    ]
    if valid is None:
        valid = own_masks(package.manifest, vectors, names)
    # Without masks every token counts.
    views = [EVERY_TOKEN] * len(vectors)
    if valid:
        pairs = zip(valid, vectors, strict=True)
        views = [token_view(tokens, package.manifest, vector_set) for tokens, vector_set in pairs]
    cases = [ComparedSet(*case) for case in zip(vectors, names, views, strict=True)]
    judged = [judge.outputs_of(case) if outputs_only else judge.everything(case) for case in cases]
    notes = [note for view in views for note in view.notes]
    notes += [note for report in judged for note in report.notes]
    found = runner.describe()
    notes += found.notes
    return ParityReport(
        reference=reference,
        vector_sets=len(vectors),
        outputs=tuple(output for report in judged for output in report.outputs),
        layers=tuple(layer for report in judged for layer in report.layers),
        has_routing=not outputs_only,
        kernel_nodes=found.kernel_nodes,
        function_nodes=found.function_nodes,
        layer_runs=found.layer_runs,
        kernels=found.kernels,
        rules=judge.rules,
        policy=policy.source,
        notes=tuple(dict.fromkeys(notes)),
        statistics=joined(report.statistics for report in judged),
        tokens=count_tokens(valid),
        precision=package.manifest.precision,
    )
