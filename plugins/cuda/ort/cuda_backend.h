#pragma once

#include "ort/backend.h"

namespace moh::ort {

// The kernels for NVIDIA GPUs, on the stream that the session computes on.
class CudaBackend final : public Backend {
 public:
  const char* execution_provider() const override;
  Ort::Status attention(const AttentionArgs& args, Ort::KernelContext& context) const override;
  Ort::Status aggregated_attention(const AggregatedAttentionArgs& args,
                                   Ort::KernelContext& context) const override;
  Ort::Status router(const RouterArgs& args, Ort::KernelContext& context) const override;
};

}  // namespace moh::ort
