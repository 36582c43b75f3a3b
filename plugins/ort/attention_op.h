// moh::MoHAttention as a custom op: reads attributes and tensors, checks them, and calls the
// kernel.
#pragma once

#include "ort/backend.h"
#include "ort/custom_op.h"

namespace moh::ort {

class AttentionKernel {
 public:
  AttentionKernel(const OrtKernelInfo* info, DType dtype, const Backend& backend);

  Ort::Status compute(Ort::KernelContext& context) const;

 private:
  struct Tensors {
    Input query, key, value, gates, mask, lengths;
  };

  Ort::Status read_sizes(const Tensors& in, AttentionArgs& args) const;
  static Ort::Status check_gates(const Tensors& in, const AttentionArgs& args);
  static Ort::Status read_mask(const Input& mask, AttentionArgs& args);
  static Ort::Status read_lengths(const Input& lengths, AttentionArgs& args);

  const DType dtype_;
  const Backend& backend_;
  int64_t q_heads_, kv_heads_;
  bool causal_;
  float scale_;
};

template <DType kType>
using AttentionOp = CustomOp<contract::attention::kOp, kType, AttentionKernel, Backend>;

}  // namespace moh::ort
