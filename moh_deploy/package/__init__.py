"""The package: the waist between PyTorch (which makes it) and the runtimes (which read it).

A package is a directory: `model.onnx` (and `model.onnx.data` above 1 GB), `manifest.json`,
`vectors.npz`. `docs/package-format.md` describes it.
"""

from moh_deploy.config.dtypes import ComputeType
from moh_deploy.config.runtimes import Runtime
from moh_deploy.package.choices import (
    CHOICES,
    NodeRule,
    asked_choice,
    at_sizes,
    choice_at,
    choice_text,
    choices_for,
    current_choice,
    measure,
    node_rules,
    projections,
    with_choices,
    with_ranges,
    without_ranges,
)
from moh_deploy.package.corpus import (
    MOST_CORPUS_BYTES,
    MOST_SAMPLES,
    ORIGINAL,
    CorpusSample,
    MinedToken,
    bounded,
)
from moh_deploy.package.external_data import MODEL_DATA_NAME, MODEL_NAME
from moh_deploy.package.fingerprint import NUMBERS, fingerprint
from moh_deploy.package.interface import (
    CacheBuffer,
    CachesInPlace,
    Call,
    CallArgument,
    DimSum,
    TensorInfo,
    TextGeneration,
)
from moh_deploy.package.layer_info import Choice, LayerInfo, RouterTypes, SizeRange
from moh_deploy.package.manifest import (
    Float32Node,
    KeptOperators,
    Made,
    Manifest,
    NearMiss,
    OtherRouter,
)
from moh_deploy.package.measured import LayerRounding, Proof, Rounding, Spread, Tuning
from moh_deploy.package.onnx_outline import read_outline
from moh_deploy.package.onnx_package import OnnxPackage, require_finished
from moh_deploy.package.spread import MASKS_BEYOND, beside_masks, fingerprint_spread, spread
from moh_deploy.package.vectors import VectorSet
from moh_deploy.package.weightless_model import load_without_weights
from moh_deploy.package.writer import (
    TOKENIZER_FILES,
    TOKENIZER_NAME,
    PackageWriter,
    check_package_output,
    check_replaceable,
)

__all__ = [
    "CHOICES",
    "MASKS_BEYOND",
    "MODEL_DATA_NAME",
    "MODEL_NAME",
    "MOST_CORPUS_BYTES",
    "MOST_SAMPLES",
    "NUMBERS",
    "ORIGINAL",
    "TOKENIZER_FILES",
    "TOKENIZER_NAME",
    "CacheBuffer",
    "CachesInPlace",
    "Call",
    "CallArgument",
    "Choice",
    "ComputeType",
    "CorpusSample",
    "DimSum",
    "Float32Node",
    "KeptOperators",
    "LayerInfo",
    "LayerRounding",
    "Made",
    "Manifest",
    "MinedToken",
    "NearMiss",
    "NodeRule",
    "OnnxPackage",
    "OtherRouter",
    "PackageWriter",
    "Proof",
    "Rounding",
    "RouterTypes",
    "Runtime",
    "SizeRange",
    "Spread",
    "TensorInfo",
    "TextGeneration",
    "Tuning",
    "VectorSet",
    "asked_choice",
    "at_sizes",
    "beside_masks",
    "bounded",
    "check_package_output",
    "check_replaceable",
    "choice_at",
    "choice_text",
    "choices_for",
    "current_choice",
    "fingerprint",
    "fingerprint_spread",
    "load_without_weights",
    "measure",
    "node_rules",
    "projections",
    "read_outline",
    "require_finished",
    "spread",
    "with_choices",
    "with_ranges",
    "without_ranges",
]
