// MoHAttention's attributes and inputs -> arguments of its kernels, except for the pointers.
#pragma once

#include "cuda/trt/core/sizes.h"
#include "moh/attention.h"

namespace moh::trt {

struct AttentionAttributes {
  explicit AttentionAttributes(const Fields& fields);
  std::vector<Number> serialize() const;

  int32_t q_heads, kv_heads;
  float scale;
  bool causal;
};

// Refuses what does not fit.
Sizes read_sizes(const Inputs& inputs, const AttentionAttributes& attributes);

// All sizes have to be known. Where there are a mask, lengths or ranges, their pointers are not
// null, but nothing to read.
AttentionArgs arguments(const Inputs& inputs, const AttentionAttributes& attributes);

}  // namespace moh::trt
