// MoHRouter: checks and launch.
#include "cuda/kernels/router.cuh"

#include <algorithm>

#include "cuda/device/element.cuh"
#include "cuda/launch/status.h"
#include "moh/cuda.h"
#include "moh/op_contract.h"

namespace moh::cuda {
namespace {

constexpr const char* kName = contract::router::kOp.name;

// Enough to fill any GPU; with more tokens each warp takes several.
constexpr int64_t kMaxBlocks = 2048;

Status check_sizes(const RouterArgs& args) {
  if (args.tokens < 0 || args.routed < 0 || args.shared < 0 || args.routed + args.shared < 1) {
    return fail(Status::kInvalidArgument,
                "MoHRouter: %lld tokens, %d routed and %d shared heads; expected at least one head "
                "and no negative number.",
                static_cast<long long>(args.tokens), args.routed, args.shared);
  }
  const int32_t least = args.routed == 0 ? 0 : 1;
  if (args.top_k < least || args.top_k > args.routed) {
    return fail(Status::kInvalidArgument, "MoHRouter: top_k is %d; expected %d to %d.", args.top_k,
                least, args.routed);
  }
  return Status::kOk;
}

Status check_tensors(const RouterArgs& args) {
  if (args.gates == nullptr || (args.routed_logits == nullptr) != (args.routed == 0)) {
    return fail(Status::kInvalidArgument,
                "MoHRouter: %s; expected gates, and routed_logits if there are routed heads.",
                args.gates == nullptr           ? "gates is null"
                : args.routed_logits == nullptr ? "routed_logits is null"
                                                : "routed_logits without routed heads");
  }
  if (args.shared_logits != nullptr && args.shared == 0) {
    return fail(Status::kInvalidArgument, "MoHRouter: shared_logits without shared heads.");
  }
  if (args.mask_only && (args.shared_logits != nullptr || args.stage_logits != nullptr)) {
    return fail(Status::kInvalidArgument,
                "MoHRouter: gate_mode \"mask\" with %s; expected neither shared nor stage logits.",
                args.shared_logits != nullptr ? "shared_logits" : "stage_logits");
  }
  return Status::kOk;
}

template <class T>
Status route(const RouterArgs& args, int32_t* head_counts, Stream stream) {
  const RouterMemory memory(args.routed, args.shared, head_counts != nullptr);
  int warps = kMaxRouterWarps;
  while (warps > 0 && memory.bytes(warps) > kMaxSharedBytes) {
    --warps;
  }
  if (warps == 0) {
    return fail(Status::kUnsupported,
                "MoHRouter: %d routed and %d shared heads need %zu bytes of shared memory; the "
                "limit is %zu.",
                args.routed, args.shared, memory.bytes(1), kMaxSharedBytes);
  }
  const RouterParams<T> params{static_cast<const T*>(args.routed_logits),
                               static_cast<const T*>(args.shared_logits),
                               static_cast<const T*>(args.stage_logits),
                               static_cast<T*>(args.gates),
                               head_counts,
                               args.tokens,
                               args.routed,
                               args.shared,
                               args.top_k,
                               args.mask_only};
  const auto blocks =
      static_cast<unsigned>(std::min((args.tokens + warps - 1) / warps, kMaxBlocks));
  return launch_status(launch(route_tokens<T>, dim3(blocks), dim3(warps * kWarpSize),
                              memory.bytes(warps), stream, params),
                       kName);
}

}  // namespace
}  // namespace moh::cuda

moh::cuda::Status moh_cuda_router(const moh::RouterArgs* args, int32_t* head_counts,
                                  moh::cuda::Stream stream) {
  using namespace moh::cuda;
  Status status = check_sizes(*args);
  if (status != Status::kOk || args->tokens == 0) {
    return status;
  }
  status = check_tensors(*args);
  if (status != Status::kOk) {
    return status;
  }
  status = check_dtype(kName, args->dtype);
  if (status != Status::kOk) {
    return status;
  }
  return with_type(args->dtype,
                   [&](auto type) { return route<decltype(type)>(*args, head_counts, stream); });
}
