"""Types of the manifest for MoH layers."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from moh_deploy.config.strict_json import Strict
from moh_deploy.ops.op_names import AttentionOp
from moh_deploy.ops.routers import FORMS
from moh_deploy.package.interface import Dtype, PositiveSize, WholeSize

Choice = Literal["dense", "sparse", "projected"]
"""How a replaced layer is run: every head by its function bodies; the chosen heads by a kernel; the
chosen heads with their projections by kernels."""

# It limits what readers allocate for heads.
_Heads = Annotated[int, Field(ge=1, le=2**20)]
_Router = Annotated[str, Field(pattern=f"^({'|'.join(form.name for form in FORMS)})$")]


@dataclass(frozen=True)
class SizeRange(Strict):
    """Sizes of the model's inputs at which a layer has a choice of its own."""

    size: str  # what is compared: a dynamic dimension, or a product of some: `seq`, `batch*seq`
    at_most: WholeSize  # the largest value that is meant
    choice: Choice  # how the layer is run up to that


@dataclass(frozen=True)
class RouterTypes(Strict):
    """The dtypes of the stages of a layer's router, in a package of lower precision."""

    # Of the products that make the logits; None where the graph does not tell.
    projection: Dtype | None
    scores: Dtype  # of logits as the router reads them, and of softmax and the choice of heads
    gates: Dtype  # of the gates as the router returns them


@dataclass(frozen=True)
class LayerInfo(Strict):
    """One MoH layer of the exported model."""

    # Module path in the original model, such as `blocks.3.attn`; `model` for the model itself; with
    # `#2` for the second layer of one path: no two layers are called the same.
    path: Annotated[str, Field(min_length=1)]
    num_heads: _Heads  # query heads of the attention, shared ones included
    # Key and value heads; None where the attention is of a form that no op covers.
    num_kv_heads: PositiveSize | None
    head_dim: PositiveSize | None  # size of one head; None under the same condition
    # Heads that run for every token; None where the router's form does not tell.
    num_shared_heads: WholeSize | None
    # Routed heads that a token chooses; 0 where nothing is selected; None where the router's form
    # does not tell.
    top_k: WholeSize | None
    router: _Router  # name of the form of its router, one of `moh_deploy.ops.routers`
    # The router became a MoHRouter node (else it stays as plain ops in front).
    router_replaced: bool
    replaced: bool  # the attention became a node of `op`
    # Why it (or its router) was not replaced; None if both were, and for constant gates, which need
    # no router.
    reason: str | None
    node: str | None  # name of the node of `op` in model.onnx; None if not replaced
    # Name of the value in model.onnx that holds the gates [B, S, num_heads]. Readers fetch it as an
    # extra output.
    gates: str
    batch: PositiveSize  # batch size at the example's sizes (product of all batch axes)
    seq_len: PositiveSize | None  # query length at the example's sizes; None where unknown
    # Keys that a token may see, at the example's sizes: all of its window and all pooled ones for
    # MoHAggregatedAttention; None where unknown.
    kv_len: PositiveSize | None
    # Share of (token, head) pairs with a non-zero gate, measured on the recorded vectors, padding
    # left out where it is known.
    active_share: Annotated[float, Field(ge=0, le=1)] | None = None
    # Name of the MoHQueryProjection node that makes the queries; None if they are made by plain
    # operators.
    query_projection: str | None = None
    # Name of the MoHOutputProjection node that reads the heads; None likewise.
    output_projection: str | None = None
    # `MoHAttention` or `MoHAggregatedAttention`; None if not replaced.
    op: AttentionOp | None = None
    # How the layer is run; None if it was not replaced, or nobody chose: then every node of it is
    # of domain `moh`.
    choice: Choice | None = None
    # Sizes at which it is run in another way; the first that the sizes are in decides, and where
    # they are in none, `choice` does.
    ranges: tuple[SizeRange, ...] = ()
    # The dtypes of the router's stages, in a package that `precision` wrote.
    router_types: RouterTypes | None = None
    # Name of the value in model.onnx that holds what the attention computes, gates included, [B, S,
    # num_heads * value size], where it was not replaced; None where it was, since `node` makes it,
    # and where no view of it is of that shape.
    attention: str | None = None
    # Heads that run for no token, whatever the inputs are; known of constant gates.
    closed_heads: tuple[WholeSize, ...] = ()
    # What structure the masks of the original have, which the node takes over, or why they stayed;
    # None where it has no mask.
    mask: str | None = None
