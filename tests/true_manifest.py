"""Manifests of packages that are made by hand, with the facts that their models and runs show."""

from collections.abc import Sequence
from dataclasses import replace

from moh_deploy.package import (
    CorpusSample,
    Manifest,
    OnnxPackage,
    PackageWriter,
    VectorSet,
    load_without_weights,
)
from moh_deploy.package.facts import recorded_facts, with_shown
from moh_deploy.package.model_facts import model_facts


def finish_true(
    writer: PackageWriter,
    manifest: Manifest,
    vectors: Sequence[VectorSet],
    corpus: Sequence[CorpusSample] = (),
) -> OnnxPackage:
    """Finish a package whose manifest says what its model and recorded runs show."""
    model = load_without_weights(writer.path("model.onnx"))
    for name, _, shown, _ in (*model_facts(manifest, model), *recorded_facts(manifest, vectors)):
        if name in ("dims", "ops", "opset"):
            manifest = replace(manifest, **{name: shown})
    for facts in (model_facts(manifest, model), recorded_facts(manifest, vectors)):
        manifest = with_shown(manifest, facts)
    if manifest.proof is not None:
        proof = replace(manifest.proof, sizes=tuple(vector.sizes for vector in vectors))
        manifest = replace(manifest, proof=proof)
    return writer.finish(manifest, vectors, corpus)
