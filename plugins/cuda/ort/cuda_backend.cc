#include "cuda/ort/cuda_backend.h"

#include "cuda/ort/workspace.h"
#include "moh/cuda.h"
#include "moh/op_contract.h"

namespace moh::ort {
namespace {

using cuda::Status;

Ort::Status Result(const char* op, Status status) {
  if (status == Status::kOk) {
    return Ort::Status();
  }
  const bool callers = status == Status::kInvalidArgument || status == Status::kUnsupported;
  const std::string text = std::string(op) + ": " + moh_cuda_last_error();
  return Ort::Status(text.c_str(), callers ? ORT_INVALID_ARGUMENT : ORT_FAIL);
}

cuda::Stream StreamOf(const Ort::KernelContext& context) {
#if defined(MOH_EMULATED)
  static_cast<void>(context);
  return nullptr;
#else
  return static_cast<cuda::Stream>(context.GetGPUComputeStream());
#endif
}

}  // namespace

const char* CudaBackend::ExecutionProvider() const {
#if defined(MOH_EMULATED)
  return "CPUExecutionProvider";
#else
  return "CUDAExecutionProvider";
#endif
}

Ort::Status CudaBackend::Attention(const AttentionArgs& args, Ort::KernelContext& context) const {
  cuda::Device device;
  cuda::AttentionChoice choice;
  size_t bytes = 0;
  Status status = moh_cuda_device(&device);
  if (status == Status::kOk) {
    status = moh_cuda_attention_choose(&args, &device, &choice);
  }
  if (status == Status::kOk) {
    status = moh_cuda_attention_workspace(&args, &choice, &bytes);
  }
  if (status == Status::kOk) {
    const Workspace workspace(context, bytes);
    status = moh_cuda_attention(&args, &choice, workspace.data(), bytes, StreamOf(context));
  }
  return Result(contract::attention::kOp.name, status);
}

Ort::Status CudaBackend::AggregatedAttention(const AggregatedAttentionArgs& args,
                                             Ort::KernelContext& context) const {
  return Result(contract::aggregated_attention::kOp.name,
                moh_cuda_aggregated_attention(&args, StreamOf(context)));
}

Ort::Status CudaBackend::Router(const RouterArgs& args, Ort::KernelContext& context) const {
  return Result(contract::router::kOp.name,
                moh_cuda_router(&args, /*head_counts=*/nullptr, StreamOf(context)));
}

}  // namespace moh::ort
