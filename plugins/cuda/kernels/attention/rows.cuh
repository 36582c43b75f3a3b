// Which rows a block computes, and where they are in memory.
#pragma once

#include "cuda/device/element.cuh"
#include "cuda/device/integers.cuh"
#include "cuda/device/tensor_core.cuh"
#include "cuda/kernels/attention/params.h"

namespace moh::cuda {

constexpr int kTileRows = 64;
constexpr int kWarpRows = 16;
constexpr int kAttentionThreads = kTileRows / kWarpRows * kWarpSize;

template <class T>
__device__ __forceinline__ const T* row_at(const void* tensor, const HeadStrides& strides,
                                           int batch, int head, int token) {
  return static_cast<const T*>(tensor) + batch * strides.batch + head * strides.head +
         token * strides.token;
}

template <class T>
__device__ __forceinline__ T* output_row(const AttentionArgs& args, int batch, int head,
                                         int token) {
  return const_cast<T*>(row_at<T>(args.output, args.output_strides, batch, head, token));
}

template <class T>
__device__ __forceinline__ float gate_at(const AttentionArgs& args, int batch, int token,
                                         int head) {
  const int64_t row = int64_t{batch} * args.queries + token;
  return to_float(static_cast<const T*>(args.gates)[row * args.q_heads + head]);
}

// How many keys of a batch are filled. A length that no host has seen is held within them.
__device__ __forceinline__ int filled_keys(const AttentionArgs& args, int batch) {
  if (args.nonpad_kv_seqlen == nullptr) {
    return args.keys;
  }
  const int64_t length = args.nonpad_kv_seqlen[batch];
  return static_cast<int>(length < 0 ? 0 : length < args.keys ? length : args.keys);
}

// How many of the filled keys a query sees: all, or those up to its position.
__device__ __forceinline__ int visible_keys(const AttentionArgs& args, int filled, int token) {
  return args.causal ? larger(filled - (args.queries - token) + 1, 0) : filled;
}

// A block's work: places [first, first + rows) of a pair. Long causal tiles come first.
struct Task {
  int pair, batch, kv_head, first, rows, keys;
};

__device__ __forceinline__ Task task_of_block(const AttentionParams& params) {
  Task task;
  const int block = blockIdx.x;
  task.pair = block / params.row_tiles;
  task.batch = task.pair / params.args.kv_heads;
  task.kv_head = task.pair % params.args.kv_heads;
  task.keys = filled_keys(params.args, task.batch);
  const int count = params.rows == nullptr ? params.rows_per_pair : params.counts[task.pair];
  task.first = (ceil_div(count, kTileRows) - 1 - block % params.row_tiles) * kTileRows;
  task.rows = task.first < 0 ? 0 : smaller(count - task.first, kTileRows);
  return task;
}

struct Row {
  int token, head;
};

__device__ __forceinline__ Row row_at_place(const AttentionParams& params, int pair, int place) {
  const int64_t list = int64_t{pair} * params.rows_per_pair;
  const int id = params.rows == nullptr ? place : params.rows[list + place];
  const int kv_head = pair % params.args.kv_heads;
  return {id / params.group, kv_head * params.group + id % params.group};
}

// In shared memory. Rows behind the last are like it, but closed.
struct TileRows {
  int token[kTileRows];
  int head[kTileRows];
  float gate[kTileRows];
};

template <class T>
__device__ __forceinline__ void load_tile_rows(TileRows& rows, const AttentionParams& params,
                                               const Task& task) {
  const int r = threadIdx.x;
  if (r < kTileRows) {
    const Row row = row_at_place(params, task.pair, task.first + smaller(r, task.rows - 1));
    const float gate = gate_at<T>(params.args, task.batch, row.token, row.head);
    rows.token[r] = row.token;
    rows.head[r] = row.head;
    rows.gate[r] = r < task.rows ? gate : 0.0f;
  }
}

// Whether a gate of the tile, of the warp's rows, is open. All lanes of the warp call.
__device__ __forceinline__ bool any_open_in_tile(const TileRows& rows) {
  const int lane = lane_index();
  return __ballot_sync(kAllLanes, rows.gate[lane] != 0.0f || rows.gate[lane + kWarpSize] != 0.0f) !=
         0;
}
__device__ __forceinline__ bool any_open_in_warp(const TileRows& rows) {
  return __ballot_sync(kAllLanes,
                       rows.gate[warp_index() * kWarpRows + lane_index() % kWarpRows] != 0.0f) != 0;
}

}  // namespace moh::cuda
