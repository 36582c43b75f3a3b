#pragma once

#include "ort/backend.h"

namespace moh::ort {

// The kernels for NVIDIA GPUs, on the stream that the session computes on.
class CudaBackend final : public Backend {
 public:
  const char* ExecutionProvider() const override;
  Ort::Status Attention(const AttentionArgs& args, Ort::KernelContext& context) const override;
  Ort::Status AggregatedAttention(const AggregatedAttentionArgs& args,
                                  Ort::KernelContext& context) const override;
  Ort::Status Router(const RouterArgs& args, Ort::KernelContext& context) const override;
};

}  // namespace moh::ort
