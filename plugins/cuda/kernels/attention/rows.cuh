// Which rows a block computes, and where they are in memory.
#pragma once

#include <climits>

#include "cuda/device/element.cuh"
#include "cuda/device/integers.cuh"
#include "cuda/device/tensor_core.cuh"
#include "cuda/kernels/attention/order.cuh"
#include "cuda/kernels/attention/params.h"

namespace moh::cuda {

// Rows of a block's tile, and of each of its warps: with 32, every fragment of keys and values that
// a warp loads is multiplied twice as often, at the price of twice the sums.
template <int kRows_, int kWarpRows_>
struct Block {
  static constexpr int kRows = kRows_, kWarpRows = kWarpRows_;
  static constexpr int kProductRows = 16;
  static constexpr int kProducts = kWarpRows / kProductRows;  // of a warp, with the same fragment
  static constexpr int kThreads = kRows / kWarpRows * kWarpSize;
  static_assert(kWarpRows % kProductRows == 0 && kWarpRows <= kWarpSize && kRows <= kThreads,
                "a lane for each row of its warp, a thread for each row of the block");
};

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

// Keys [first, end).
struct KeyRange {
  int first, end;

  __device__ __forceinline__ bool has(int key) const { return key >= first && key < end; }
  __device__ __forceinline__ bool empty() const { return first >= end; }
};

// What position, lengths and key_ranges leave of the keys for a query; {0, 0}: none. A range that
// no host has seen is held within the keys.
__device__ __forceinline__ KeyRange keys_of_query(const AttentionArgs& args, int filled, int batch,
                                                  int token) {
  KeyRange keys{0, visible_keys(args, filled, token)};
  if (args.key_ranges != nullptr) {
    const int64_t* range = args.key_ranges + batch * args.key_ranges_batch + int64_t{2} * token;
    const int64_t seen = keys.end;
    keys.first = static_cast<int>(smaller(larger(range[0], int64_t{0}), seen));
    keys.end = static_cast<int>(smaller(larger(range[1], int64_t{0}), seen));
  }
  return keys.empty() ? KeyRange{0, 0} : keys;
}

// A block's work: places [first, first + rows) of a pair.
struct Task {
  int pair, batch, kv_head, first, rows, keys;
};

template <class Block>
__device__ __forceinline__ Task task_of_block(const AttentionParams& params) {
  const int pairs = params.args.batch * params.args.kv_heads;
  const Turn turn =
      turn_of_block(static_cast<int>(blockIdx.x), pairs, params.row_tiles, params.section_pairs);
  Task task;
  task.pair = turn.pair;
  task.batch = task.pair / params.args.kv_heads;
  task.kv_head = task.pair % params.args.kv_heads;
  task.keys = filled_keys(params.args, task.batch);
  const int count = params.rows == nullptr ? params.rows_per_pair : params.counts[task.pair];
  const int tiles = ceil_div(count, Block::kRows);
  const int tile = tile_of_turn(turn.rank, tiles, params.row_tiles);
  task.first = (tiles - 1 - tile) * Block::kRows;
  task.rows = tile < 0 ? 0 : smaller(count - task.first, Block::kRows);
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
constexpr int kClosed = -1;
template <class Block>
struct TileRows {
  int token[Block::kRows];
  int head[Block::kRows];
  KeyRange keys[Block::kRows];  // of closed gates: {0, kClosed}

  __device__ __forceinline__ bool is_open(int r) const { return keys[r].end != kClosed; }
};

template <class T, class Block>
__device__ __forceinline__ void load_tile_rows(TileRows<Block>& rows, const AttentionParams& params,
                                               const Task& task) {
  const int r = threadIdx.x;
  if (r < Block::kRows) {
    const Row row = row_at_place(params, task.pair, task.first + smaller(r, task.rows - 1));
    const float gate = gate_at<T>(params.args, task.batch, row.token, row.head);
    rows.token[r] = row.token;
    rows.head[r] = row.head;
    rows.keys[r] = r < task.rows && gate != 0.0f
                       ? keys_of_query(params.args, task.keys, task.batch, row.token)
                       : KeyRange{0, kClosed};
  }
}

// Of open rows: the keys from the first to the last that any of them sees, and those that all see.
struct RowsKeys {
  KeyRange any, all;
};

// All lanes of a warp call.
template <int kRows, class Block>
__device__ __forceinline__ RowsKeys keys_of_rows(const TileRows<Block>& rows, int first) {
  constexpr int kNoKey = INT_MAX;
  RowsKeys keys{{kNoKey, 0}, {0, kNoKey}};
#pragma unroll
  for (int r = first; r < first + kRows; r += kWarpSize) {
    const KeyRange own = rows.keys[r + lane_index() % smaller(kRows, kWarpSize)];
    if (!own.empty()) {
      keys.any = {smaller(keys.any.first, own.first), larger(keys.any.end, own.end)};
    }
    if (own.end != kClosed) {
      keys.all = {larger(keys.all.first, own.first), smaller(keys.all.end, own.end)};
    }
  }
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    const auto other = [&](int value) { return __shfl_xor_sync(kAllLanes, value, distance); };
    keys.any = {smaller(keys.any.first, other(keys.any.first)),
                larger(keys.any.end, other(keys.any.end))};
    keys.all = {larger(keys.all.first, other(keys.all.first)),
                smaller(keys.all.end, other(keys.all.end))};
  }
  return keys;
}

}  // namespace moh::cuda
