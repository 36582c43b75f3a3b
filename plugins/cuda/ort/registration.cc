// The entry point that ONNX Runtime looks for in a custom-op library: MoHAttention,
// MoHAggregatedAttention and MoHRouter for its CUDA execution provider.
#include "ort/registration.h"

#include "cuda/ort/cuda_backend.h"
#include "moh/cuda.h"
#include "ort/aggregated_attention_op.h"
#include "ort/attention_op.h"
#include "ort/domains.h"
#include "ort/every_dtype.h"
#include "ort/router_op.h"

namespace moh::ort {
namespace {

struct Ops {
  const CudaBackend backend;
  InEveryDType<AttentionOp> attention{backend};
  InEveryDType<AggregatedAttentionOp> aggregated_attention{backend};
  InEveryDType<RouterOp> router{backend};
  Domains domains{[this](Ort::CustomOpDomain& domain) {
    attention.add_to(domain);
    aggregated_attention.add_to(domain);
    router.add_to(domain);
  }};
};

Ort::Status register_ops(OrtSessionOptions* options) {
  // Sessions point into it, and nothing tells when the last one is gone: kept for good.
  static auto& ops = *new Ops();
  return ops.domains.add_to(Ort::UnownedSessionOptions(options));
}

}  // namespace
}  // namespace moh::ort

MOH_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  // The first with KernelContext_GetScratchBuffer.
  return moh::ort::register_with(
      base, "moh-deploy's CUDA kernels", [&] { return moh::ort::register_ops(options); },
      /*api_version=*/18);
}

// Which attention kernels of Triton it holds, a line each: moh_cuda_triton_kernels.
MOH_EXPORT const char* moh_ort_cuda_triton_kernels() { return moh_cuda_triton_kernels(); }

// The version of moh-deploy that this library belongs to.
MOH_EXPORT const char* moh_ort_cuda_version() { return MOH_VERSION; }
