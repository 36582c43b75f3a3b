// Lists the rows with open gates, and writes the zeros of all others.
#pragma once

#include "cuda/device/tensor_core.cuh"
#include "cuda/kernels/attention/rows.cuh"

namespace moh::cuda {

constexpr int kCompactThreads = 1024;
constexpr int kCompactWarps = kCompactThreads / kWarpSize;
static_assert(kCompactWarps == kWarpSize, "a lane for each warp's count");

// Rows of a thread in a chunk: their gates are read at the same time.
constexpr int kCompactRows = 4;
constexpr int kCompactChunk = kCompactRows * kCompactThreads;

struct CompactShared {
  // Of open rows in a warp's part of each turn, of the even, the odd chunks.
  int counts[2][kCompactRows][kCompactWarps];
};

// How many of `counts` there are in all, and before this warp.
struct Prefix {
  int before, total;
};
__device__ __forceinline__ Prefix prefix_of_warp(const int (&counts)[kCompactWarps]) {
  const int lane = lane_index(), count = counts[lane];
  Prefix prefix{lane < warp_index() ? count : 0, count};
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    prefix.before += __shfl_xor_sync(kAllLanes, prefix.before, distance);
    prefix.total += __shfl_xor_sync(kAllLanes, prefix.total, distance);
  }
  return prefix;
}

// The open rows of a pair, in order: a chunk at a time, in turns of a row a thread.
template <class T>
__device__ __forceinline__ void list_open_rows(const CompactParams& params, int pair) {
  CompactShared& shared = *reinterpret_cast<CompactShared*>(shared_memory());
  const AttentionArgs& args = params.args;
  const int batch = pair / args.kv_heads, first_head = pair % args.kv_heads * params.group;
  int32_t* list = params.rows + int64_t{pair} * params.rows_per_pair;
  int listed = 0;
  for (int chunk = 0; chunk * kCompactChunk < params.rows_per_pair; ++chunk) {
    const int first_id = chunk * kCompactChunk + static_cast<int>(threadIdx.x);
    bool open[kCompactRows];
#pragma unroll
    for (int turn = 0; turn < kCompactRows; ++turn) {
      const int id = first_id + turn * kCompactThreads;
      open[turn] = id < params.rows_per_pair && gate_at<T>(args, batch, id / params.group,
                                                           first_head + id % params.group) != 0.0f;
    }
    int (&counts)[kCompactRows][kCompactWarps] = shared.counts[chunk % 2];
    uint32_t open_lanes[kCompactRows];
#pragma unroll
    for (int turn = 0; turn < kCompactRows; ++turn) {
      open_lanes[turn] = __ballot_sync(kAllLanes, open[turn]);
      if (lane_index() == 0) {
        counts[turn][warp_index()] = __popc(open_lanes[turn]);
      }
    }
    __syncthreads();
#pragma unroll
    for (int turn = 0; turn < kCompactRows; ++turn) {
      const Prefix prefix = prefix_of_warp(counts[turn]);
      if (open[turn]) {
        const uint32_t lower_lanes = (1u << lane_index()) - 1;
        list[listed + prefix.before + __popc(open_lanes[turn] & lower_lanes)] =
            first_id + turn * kCompactThreads;
      }
      listed += prefix.total;
    }
  }
  if (threadIdx.x == 0) {
    params.counts[pair] = listed;
  }
}

// Zeros for the closed rows of a token, by a warp: neighbouring heads are neighbours in memory if
// the tensor has rank 3.
template <class T, class Part>
__device__ __forceinline__ void zero_closed_rows(const AttentionArgs& args, int batch, int token) {
  const int parts = args.value_dim / static_cast<int>(sizeof(Part) / sizeof(T));
  for (int i = lane_index(); i < args.q_heads * parts; i += kWarpSize) {
    const int head = i / parts;
    if (gate_at<T>(args, batch, token, head) == 0.0f) {
      reinterpret_cast<Part*>(output_row<T>(args, batch, head, token))[i % parts] = Part{};
    }
  }
}

// The first blocks list a pair each; the others write zeros. Two blocks share a multiprocessor,
// where it has as many threads.
template <class T>
__global__ void __launch_bounds__(kCompactThreads, 2) compact(const CompactParams params) {
  const int block = blockIdx.x;
  if (block < params.pairs) {
    list_open_rows<T>(params, block);
    return;
  }
  const AttentionArgs& args = params.args;
  const int64_t tokens = int64_t{args.batch} * args.queries;
  const int64_t warps = int64_t{static_cast<int>(gridDim.x) - params.pairs} * kCompactWarps;
  int64_t token = int64_t{block - params.pairs} * kCompactWarps + warp_index();
  for (; token < tokens; token += warps) {
    const int batch = static_cast<int>(token / args.queries);
    const int query = static_cast<int>(token % args.queries);
    if (params.output_vectors) {
      zero_closed_rows<T, uint4>(args, batch, query);
    } else {
      zero_closed_rows<T, T>(args, batch, query);
    }
  }
}

}  // namespace moh::cuda
