// Synthetic gates: checks and launch.
#include "cuda/kernels/synthetic_gates.cuh"

#include <algorithm>

#include "cuda/launch/status.h"
#include "moh/cuda.h"

namespace moh::cuda {
namespace {

constexpr int64_t kMaxBlocks = 2048;

Status check(const void* gates, int64_t count, float open_share) {
  if (gates == nullptr || count < 0) {
    return fail(Status::kInvalidArgument,
                "Synthetic gates: %lld of them; expected memory for 0 or more.",
                static_cast<long long>(count));
  }
  if (!(open_share >= 0.0f && open_share <= 1.0f)) {
    return fail(Status::kInvalidArgument, "Synthetic gates: open share %g; expected 0 to 1.",
                static_cast<double>(open_share));
  }
  return Status::kOk;
}

template <class T>
Status write(void* gates, int64_t count, float open_share, Stream stream) {
  const auto threshold =
      static_cast<uint32_t>(std::min(static_cast<double>(open_share) * 4294967296.0, 4294967295.0));
  const SyntheticGatesParams<T> params{static_cast<T*>(gates), count, threshold,
                                       open_share == 1.0f};
  const int64_t blocks = (count + kSyntheticGatesThreads - 1) / kSyntheticGatesThreads;
  return launch_status(
      launch(write_synthetic_gates<T>, dim3(static_cast<unsigned>(std::min(blocks, kMaxBlocks))),
             dim3(kSyntheticGatesThreads), 0, stream, params),
      "Synthetic gates");
}

}  // namespace
}  // namespace moh::cuda

moh::cuda::Status moh_cuda_synthetic_gates(void* gates, moh::DType dtype, int64_t count,
                                           float open_share, moh::cuda::Stream stream) {
  using moh::cuda::Status;
  Status status = moh::cuda::check(gates, count, open_share);
  if (status != Status::kOk || count == 0) {
    return status;
  }
  status = moh::cuda::check_dtype("Synthetic gates", dtype);
  if (status != Status::kOk) {
    return status;
  }
  return moh::cuda::with_type(dtype, [&](auto type) {
    return moh::cuda::write<decltype(type)>(gates, count, open_share, stream);
  });
}
