#include "cuda/ort/cuda_backend.h"

#include "cuda/ort/workspace.h"
#include "moh/cuda.h"
#include "moh/op_contract.h"

namespace moh::ort {
namespace {

using cuda::Status;

Ort::Status result(const char* op, Status status) {
  if (status == Status::kOk) {
    return Ort::Status();
  }
  const bool callers = status == Status::kInvalidArgument || status == Status::kUnsupported;
  const std::string text = std::string(op) + ": " + moh_cuda_last_error();
  return Ort::Status(text.c_str(), callers ? ORT_INVALID_ARGUMENT : ORT_FAIL);
}

cuda::Stream stream_of(const Ort::KernelContext& context) {
#if defined(MOH_EMULATED)
  static_cast<void>(context);
  return nullptr;
#else
  return static_cast<cuda::Stream>(context.GetGPUComputeStream());
#endif
}

}  // namespace

const char* CudaBackend::execution_provider() const {
#if defined(MOH_EMULATED)
  return "CPUExecutionProvider";
#else
  return "CUDAExecutionProvider";
#endif
}

Ort::Status CudaBackend::attention(const AttentionArgs& args, Ort::KernelContext& context) const {
  cuda::Device device;
  cuda::AttentionChoice choice;
  size_t bytes = 0;
  Status status = moh_cuda_device(&device);
  if (status == Status::kOk) {
    status = moh_cuda_attention_choose(&args, &device, cuda::kUsualOpenShare, &choice);
  }
  if (status == Status::kOk) {
    status = moh_cuda_attention_workspace(&args, &choice, &bytes);
  }
  if (status == Status::kOk) {
    const Workspace workspace(context, bytes);
    status = moh_cuda_attention(&args, &choice, workspace.data(), bytes, stream_of(context));
  }
  return result(contract::attention::kOp.name, status);
}

Ort::Status CudaBackend::aggregated_attention(const AggregatedAttentionArgs& args,
                                              Ort::KernelContext& context) const {
  return result(contract::aggregated_attention::kOp.name,
                moh_cuda_aggregated_attention(&args, stream_of(context)));
}

Ort::Status CudaBackend::router(const RouterArgs& args, Ort::KernelContext& context) const {
  return result(contract::router::kOp.name,
                moh_cuda_router(&args, /*head_counts=*/nullptr, stream_of(context)));
}

}  // namespace moh::ort
