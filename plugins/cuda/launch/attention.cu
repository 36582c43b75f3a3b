// MoHAttention: the C interface.
#include <algorithm>

#include "cuda/device/integers.cuh"
#include "cuda/kernels/attention/rows.cuh"
#include "cuda/kernels/combine.cuh"
#include "cuda/kernels/compact.cuh"
#include "cuda/kernels/mask_map.cuh"
#include "cuda/launch/attention_heads.h"
#include "cuda/launch/attention_model.h"
#include "cuda/launch/attention_plan.h"
#include "cuda/launch/status.h"
#include "cuda/launch/triton_attention.h"
#include "moh/cuda.h"
#include "moh/op_contract.h"

namespace moh::cuda {
namespace {

constexpr int64_t kMaxZeroBlocks = 1024;  // more do not fill a GPU better

template <class T>
cudaError_t launch_compact_of(const CompactParams& params, cudaStream_t stream) {
  const int64_t tokens = int64_t{params.args.batch} * params.args.queries;
  const int64_t zero_blocks = std::min(ceil_div<int64_t>(tokens, kCompactWarps), kMaxZeroBlocks);
  const auto blocks = static_cast<unsigned>(params.pairs + zero_blocks);
  return launch(compact<T>, dim3(blocks), dim3(kCompactThreads), sizeof(CompactShared), stream,
                params);
}

cudaError_t launch_compact(const CompactParams& params, cudaStream_t stream) {
  return with_type(params.args.dtype,
                   [&](auto type) { return launch_compact_of<decltype(type)>(params, stream); });
}

cudaError_t launch_mask_map(const AttentionParams& params, cudaStream_t stream) {
  const auto entries = static_cast<int64_t>(entries_of(params.map));
  if (entries == 0) {
    return cudaSuccess;
  }
  const MaskMapParams map{params.args, params.map, const_cast<uint8_t*>(params.map.states),
                          entries};
  const int64_t blocks = ceil_div<int64_t>(entries, kMapThreads / kWarpSize);
  return launch(map_mask, dim3(static_cast<unsigned>(blocks)), dim3(kMapThreads), 0, stream, map);
}

cudaError_t launch_combine(const AttentionParams& params, cudaStream_t stream) {
  const int64_t blocks = int64_t{params.args.batch} * params.args.kv_heads *
                         ceil_div(params.rows_per_pair, kCombineRows);
  const dim3 grid(static_cast<unsigned>(blocks)), block(kCombineThreads);
  return with_type(params.args.dtype, [&](auto type) {
    return launch(combine<decltype(type)>, grid, block, 0, stream, params);
  });
}

cudaError_t launch_attention(const AttentionParams& params, AttentionBlock block,
                             cudaStream_t stream) {
  const AttentionArgs& args = params.args;
  const int64_t blocks = int64_t{args.batch} * args.kv_heads * params.row_tiles;
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(params.splits));
  return with_head_size(args, [&](auto head_size) {
    return launch_attend<decltype(head_size)::value>(params, block, grid, stream);
  });
}

// The code of Triton that a choice is for; null: none.
Status find_code(const AttentionArgs& args, const Device& device, const AttentionChoice& choice,
                 const TritonCode** code) {
  *code = nullptr;
  if (choice.kernel == AttentionKernel::kCuda) {
    return Status::kOk;
  }
  const char* reason = nullptr;
  *code = find_triton_code(args, device, choice.key_splits, &reason);
  return *code != nullptr ? Status::kOk
                          : fail(Status::kUnsupported,
                                 "MoHAttention: kernel 1 (Triton) was chosen, but %s.", reason);
}

// It has to be there, and loaded, before anything is launched.
Status load_code(const AttentionArgs& args, const AttentionChoice& choice,
                 const TritonCode** code) {
  *code = nullptr;
  if (choice.kernel == AttentionKernel::kCuda) {
    return Status::kOk;
  }
  Device device{};
  Status status = moh_cuda_device(&device);
  if (status == Status::kOk) {
    status = find_code(args, device, choice, code);
  }
  return status == Status::kOk ? load_triton_code(**code) : status;
}

Status run(const AttentionArgs& args, const AttentionChoice& choice, void* workspace,
           cudaStream_t stream) {
  const TritonCode* code = nullptr;
  const Status loaded = load_code(args, choice, &code);
  if (loaded != Status::kOk) {
    return loaded;
  }
  const AttentionParams params = attention_params(args, choice, workspace);
  if (choice.tactic == AttentionTactic::kSparse) {
    const cudaError_t error = launch_compact(compact_params(args, params), stream);
    if (error != cudaSuccess) {
      return launch_status(error, "MoHAttention, list of rows");
    }
  }
  const cudaError_t mapped = launch_mask_map(params, stream);
  if (mapped != cudaSuccess) {
    return launch_status(mapped, "MoHAttention, map of its mask");
  }
  if (code != nullptr) {
    return launch_triton_attention(params, *code, stream);
  }
  const cudaError_t error = launch_attention(params, choice.block, stream);
  if (error != cudaSuccess || params.splits == 1) {
    return launch_status(error, contract::attention::kOp.name);
  }
  return launch_status(launch_combine(params, stream), "MoHAttention, combining of key splits");
}

Status check_open_share(const AttentionArgs& args, float open_share) {
  const Status status = check_attention(args);
  if (status == Status::kOk && !(open_share >= 0.0f && open_share <= 1.0f)) {
    return fail(Status::kInvalidArgument, "MoHAttention: open_share %g; expected 0 to 1.",
                static_cast<double>(open_share));
  }
  return status;
}

Status check_workspace(const AttentionArgs& args, const AttentionChoice& choice,
                       const void* workspace, size_t bytes) {
  const size_t needed = lay_out(args, choice).bytes;
  if (bytes < needed) {
    return fail(Status::kWorkspaceTooSmall,
                "MoHAttention: a workspace of %zu bytes; this choice needs %zu.", bytes, needed);
  }
  if (needed > 0 && (workspace == nullptr || reinterpret_cast<uintptr_t>(workspace) % 16 != 0)) {
    return fail(Status::kInvalidArgument,
                "MoHAttention: workspace at %p; expected an address that is a multiple of 16.",
                workspace);
  }
  return Status::kOk;
}

}  // namespace
}  // namespace moh::cuda

using moh::AttentionArgs;
using moh::cuda::AttentionChoice;
using moh::cuda::Status;

Status moh_cuda_attention_choose(const AttentionArgs* args, const moh::cuda::Device* device,
                                 float open_share, AttentionChoice* choice) {
  const Status status = moh::cuda::check_open_share(*args, open_share);
  if (status == Status::kOk) {
    *choice = moh::cuda::choose_attention(*args, *device, open_share);
    moh::cuda::choose_kernel(*args, *device, *choice);
  }
  return status;
}

Status moh_cuda_attention_estimate(const AttentionArgs* args, const moh::cuda::Device* device,
                                   float open_share, const AttentionChoice* choice,
                                   double* microseconds) {
  Status status = moh::cuda::check_open_share(*args, open_share);
  if (status == Status::kOk) {
    status = moh::cuda::check_choice(*args, *choice);
  }
  if (status == Status::kOk) {
    *microseconds = moh::cuda::estimated_us(*args, *choice, *device, open_share);
  }
  return status;
}

Status moh_cuda_attention_workspace(const AttentionArgs* args, const AttentionChoice* choice,
                                    size_t* bytes) {
  Status status = moh::cuda::check_attention(*args);
  if (status == Status::kOk) {
    status = moh::cuda::check_choice(*args, *choice);
  }
  if (status == Status::kOk) {
    *bytes = moh::cuda::lay_out(*args, *choice).bytes;
  }
  return status;
}

Status moh_cuda_attention_check(const AttentionArgs* args, const moh::cuda::Device* device,
                                const AttentionChoice* choice) {
  Status status = moh::cuda::check_attention(*args);
  if (status == Status::kOk) {
    status = moh::cuda::check_choice(*args, *choice);
  }
  const moh::cuda::TritonCode* code = nullptr;
  return status == Status::kOk ? moh::cuda::find_code(*args, *device, *choice, &code) : status;
}

Status moh_cuda_attention(const AttentionArgs* args, const AttentionChoice* choice, void* workspace,
                          size_t workspace_bytes, moh::cuda::Stream stream) {
  size_t bytes = 0;
  Status status = moh_cuda_attention_workspace(args, choice, &bytes);
  if (status != Status::kOk || args->batch == 0 || args->queries == 0) {
    return status;
  }
  status = moh::cuda::check_pointers(*args);
  if (status == Status::kOk) {
    status = moh::cuda::check_workspace(*args, *choice, workspace, workspace_bytes);
  }
  return status == Status::kOk ? moh::cuda::run(*args, *choice, workspace, stream) : status;
}
