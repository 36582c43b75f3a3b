"""The package: the waist between PyTorch (which makes it) and the runtimes (which read it).

A package is a directory: `model.onnx` (and `model.onnx.data` above 1 GB), `manifest.json`,
`vectors.npz`. `docs/package-format.md` describes it.
"""

from moh_deploy.package.choices import (
    CHOICES,
    NodeRule,
    asked_choice,
    choice_text,
    choices_for,
    current_choice,
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
from moh_deploy.package.emulated_dtype import Dtype, computes_in, emulate
from moh_deploy.package.external_data import MODEL_DATA_NAME, MODEL_NAME
from moh_deploy.package.fingerprint import NUMBERS, fingerprint
from moh_deploy.package.fixed_routing import (
    fix_routing,
    fixed_input,
    routed_values,
    why_not_fixed,
)
from moh_deploy.package.forced_gates import (
    GateTypes,
    computed_gates,
    force_gates,
    forced_gates,
    unforceable_layers,
)
from moh_deploy.package.layer_nodes import LayerNodes, layer_nodes
from moh_deploy.package.layer_sources import NO_SOURCES, LayerSources, Source, layer_sources
from moh_deploy.package.load_model import load_ir
from moh_deploy.package.manifest import (
    FORMAT_VERSION,
    Choice,
    ComputeType,
    Float32Node,
    KeptOperators,
    LayerInfo,
    LayerRounding,
    Manifest,
    Proof,
    Rounding,
    RouterTypes,
    SizeRange,
    Spread,
    TensorInfo,
    Tuning,
)
from moh_deploy.package.onnx_outline import ModelOutline, read_outline
from moh_deploy.package.onnx_package import OnnxPackage, require_finished
from moh_deploy.package.router_logits import (
    RouterLogits,
    attention_value,
    force_logits,
    router_logits,
)
from moh_deploy.package.router_nodes import router_nodes
from moh_deploy.package.size_ranges import at_sizes, bound_text, choice_at, measure
from moh_deploy.package.spread import fingerprint_spread, spread
from moh_deploy.package.switches import (
    CONDITION_PREFIX,
    all_nodes,
    dense_twin,
    switch_rules,
)
from moh_deploy.package.vectors import VectorSet
from moh_deploy.package.weight_noise import (
    ROUNDING_STEP,
    add_weight_noise,
    has_low_weights,
    weight_noise,
)
from moh_deploy.package.writer import PackageWriter, check_output

__all__ = [
    "CHOICES",
    "CONDITION_PREFIX",
    "FORMAT_VERSION",
    "MODEL_DATA_NAME",
    "MODEL_NAME",
    "MOST_CORPUS_BYTES",
    "MOST_SAMPLES",
    "NO_SOURCES",
    "NUMBERS",
    "ORIGINAL",
    "ROUNDING_STEP",
    "Choice",
    "ComputeType",
    "CorpusSample",
    "Dtype",
    "Float32Node",
    "GateTypes",
    "KeptOperators",
    "LayerInfo",
    "LayerNodes",
    "LayerRounding",
    "LayerSources",
    "Manifest",
    "MinedToken",
    "ModelOutline",
    "NodeRule",
    "OnnxPackage",
    "PackageWriter",
    "Proof",
    "Rounding",
    "RouterLogits",
    "RouterTypes",
    "SizeRange",
    "Source",
    "Spread",
    "TensorInfo",
    "Tuning",
    "VectorSet",
    "add_weight_noise",
    "all_nodes",
    "asked_choice",
    "at_sizes",
    "attention_value",
    "bound_text",
    "bounded",
    "check_output",
    "choice_at",
    "choice_text",
    "choices_for",
    "computed_gates",
    "computes_in",
    "current_choice",
    "dense_twin",
    "emulate",
    "fingerprint",
    "fingerprint_spread",
    "fix_routing",
    "fixed_input",
    "force_gates",
    "force_logits",
    "forced_gates",
    "has_low_weights",
    "layer_nodes",
    "layer_sources",
    "load_ir",
    "measure",
    "node_rules",
    "projections",
    "read_outline",
    "require_finished",
    "routed_values",
    "router_logits",
    "router_nodes",
    "spread",
    "switch_rules",
    "unforceable_layers",
    "weight_noise",
    "why_not_fixed",
    "with_choices",
    "with_ranges",
    "without_ranges",
]
