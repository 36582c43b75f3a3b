// moh::MoHAggregatedAttention as a custom op.
#pragma once

#include "nodes/aggregated_attention.h"
#include "ort/custom_op.h"
#include "ort/node_kernel.h"

namespace moh::ort {

template <DType kType>
using AggregatedAttentionOp = CustomOp<contract::aggregated_attention::kOp, kType,
                                       NodeKernel<node::AggregatedAttention>, Backend>;

}  // namespace moh::ort
