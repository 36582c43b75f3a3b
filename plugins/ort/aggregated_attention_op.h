// moh::MoHAggregatedAttention as a custom op: reads attributes and tensors, checks them, and calls
// the kernel.
#pragma once

#include "ort/backend.h"
#include "ort/custom_op.h"

namespace moh::ort {

class AggregatedAttentionKernel {
 public:
  AggregatedAttentionKernel(const OrtKernelInfo* info, DType dtype, const Backend& backend);

  Ort::Status compute(Ort::KernelContext& context) const;

 private:
  static constexpr size_t kInputs = contract::aggregated_attention::kOp.num_inputs;
  using Inputs = Input[kInputs];

  Ort::Status read_sizes(const Inputs& in, AggregatedAttentionArgs& args) const;
  static Ort::Status check_shapes(const Inputs& in, const AggregatedAttentionArgs& args);

  const DType dtype_;
  const Backend& backend_;
  int64_t heads_, height_, width_, kernel_height_, kernel_width_;
  bool normalize_;
  float epsilon_;
};

template <DType kType>
using AggregatedAttentionOp =
    CustomOp<contract::aggregated_attention::kOp, kType, AggregatedAttentionKernel, Backend>;

}  // namespace moh::ort
