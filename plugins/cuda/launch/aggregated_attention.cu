// MoHAggregatedAttention: checks, and which kernel runs.
#include "cuda/launch/aggregated_attention_heads.h"

#include "moh/cuda.h"
#include "moh/op_contract.h"

namespace moh::cuda {
namespace {

constexpr int32_t kMaxHeadDim = contract::aggregated_attention::kMostHeadDim;
// Of a window: shared memory has room for as many at any head size.
constexpr int64_t kMaxPlaces = contract::aggregated_attention::kMostWindowPlaces;

Status check_sizes(const AggregatedAttentionArgs& args) {
  if (args.batch < 0 || args.heads < 1 || args.head_dim < 0 || args.height < 1 || args.width < 1 ||
      args.pooled < 1) {
    return fail(
        Status::kInvalidArgument,
        "MoHAggregatedAttention: batch %d, %d heads of %d, image %d x %d, %d pooled tokens; "
        "expected at least 1 of each but batch and head_dim.",
        args.batch, args.heads, args.head_dim, args.height, args.width, args.pooled);
  }
  if (args.kernel_height < 1 || args.kernel_width < 1 || args.kernel_height % 2 == 0 ||
      args.kernel_width % 2 == 0) {
    return fail(Status::kInvalidArgument,
                "MoHAggregatedAttention: kernel %d x %d; expected odd numbers.", args.kernel_height,
                args.kernel_width);
  }
  return Status::kOk;
}

Status check_limits(const AggregatedAttentionArgs& args) {
  if (args.head_dim > kMaxHeadDim) {
    return fail(Status::kUnsupported, "MoHAggregatedAttention: head_dim %d; the limit is %d.",
                args.head_dim, kMaxHeadDim);
  }
  const int64_t places = static_cast<int64_t>(args.kernel_height) * args.kernel_width;
  if (places > kMaxPlaces) {
    return fail(Status::kUnsupported,
                "MoHAggregatedAttention: a window of %lld places; the limit is %lld.",
                static_cast<long long>(places), static_cast<long long>(kMaxPlaces));
  }
  const int64_t tokens = static_cast<int64_t>(args.height) * args.width;
  if (tokens + args.pooled > INT32_MAX) {
    return fail(Status::kUnsupported,
                "MoHAggregatedAttention: %lld pixels and %d pooled tokens; the limit is %d.",
                static_cast<long long>(tokens), args.pooled, INT32_MAX);
  }
  return Status::kOk;
}

Status check_tensors(const AggregatedAttentionArgs& args) {
  const struct {
    const char* name;
    const void* data;
  } required[] = {{"query", args.query},
                  {"key", args.key},
                  {"value", args.value},
                  {"pooled_key", args.pooled_key},
                  {"pooled_value", args.pooled_value},
                  {"gates", args.gates},
                  {"output", args.output}};
  for (const auto& tensor : required) {
    if (tensor.data == nullptr) {
      return fail(Status::kInvalidArgument, "MoHAggregatedAttention: %s is null.", tensor.name);
    }
  }
  return Status::kOk;
}

Status attend(const AggregatedAttentionArgs& args, Stream stream) {
  if (args.head_dim <= 32) {
    return launch_attend_to_neighbours<32>(args, stream);
  }
  if (args.head_dim <= 64) {
    return launch_attend_to_neighbours<64>(args, stream);
  }
  if (args.head_dim <= 128) {
    return launch_attend_to_neighbours<128>(args, stream);
  }
  return launch_attend_to_neighbours<256>(args, stream);
}

}  // namespace
}  // namespace moh::cuda

moh::cuda::Status moh_cuda_aggregated_attention(const moh::AggregatedAttentionArgs* args,
                                                moh::cuda::Stream stream) {
  using namespace moh::cuda;
  Status status = check_dtype(moh::contract::aggregated_attention::kOp.name, args->dtype);
  for (const auto check : {check_sizes, check_limits}) {
    status = status == Status::kOk ? check(*args) : status;
  }
  if (status != Status::kOk || args->batch == 0 || args->head_dim == 0) {
    return status;
  }
  status = check_tensors(*args);
  return status == Status::kOk ? attend(*args, stream) : status;
}
