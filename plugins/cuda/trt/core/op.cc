#include "cuda/trt/core/ops.h"

namespace moh::trt {

const std::vector<const OpInfo*>& Ops() {
  static const std::vector<const OpInfo*> ops{&RouterInfo(), &AttentionInfo(),
                                              &AggregatedAttentionInfo()};
  return ops;
}

void CheckStatus(cuda::Status status) {
  if (status != cuda::Status::kOk) {
    throw Refusal(moh_cuda_last_error());
  }
}

}  // namespace moh::trt
