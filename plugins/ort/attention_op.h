// moh::MoHAttention as a custom op.
#pragma once

#include "nodes/attention.h"
#include "ort/custom_op.h"
#include "ort/node_kernel.h"

namespace moh::ort {

// On the backend that the node's attribute compute_type asks for.
class AttentionKernel : public NodeKernel<node::Attention> {
 public:
  AttentionKernel(const OrtKernelInfo* info, DType dtype, const Backend& backend);
};

template <DType kType>
using AttentionOp = CustomOp<contract::attention::kOp, kType, AttentionKernel, Backend>;

}  // namespace moh::ort
