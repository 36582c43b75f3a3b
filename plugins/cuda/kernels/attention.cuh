// MoHAttention, one block for a tile of rows of a (batch, KV head) pair and a range of keys:
// scores, softmax and values of a tile of keys at a time, all sums in registers.
//
// A warp has 16 or 32 rows (rows.cuh). Keys and values have one buffer each, and are loaded in
// turn: values arrive while scores are computed, and the next keys while values are added.
#pragma once

#include "cuda/device/softmax.cuh"
#include "cuda/device/tensor_core.cuh"
#include "cuda/device/tile.cuh"
#include "cuda/kernels/attention/mask.cuh"
#include "cuda/kernels/attention/output.cuh"
#include "cuda/kernels/attention/rows.cuh"
#include "cuda/kernels/attention/seen_tiles.cuh"

namespace moh::cuda {

// Keys of a tile, as many as scores and sums leave registers for. With 16 rows a warp, no more than
// leave room for a second block in 100 KB of shared memory (sm_86, 89, 120), where that can be had.
template <class T, int kHeadSize, class Block>
constexpr int kTileKeys = sizeof(T) == 4         ? (kHeadSize <= 192 ? 32 : 16)
                          : Block::kProducts > 1 ? (kHeadSize <= 64 ? 64 : 32)
                                                 : (kHeadSize == 128 || kHeadSize == 256 ? 32 : 64);

// Sizes for heads of up to kHeadSize.
template <class T, int kHeadSize, class Block>
struct AttentionTile {
  static_assert(kHeadSize % 16 == 0, "two tiles of 8 columns at a time");
  static constexpr int kKeys = kTileKeys<T, kHeadSize, Block>;
  static constexpr int kStride = kHeadSize + TensorCore<T>::kPadding;

  T queries[Block::kRows * kStride];  // later the staging of outputs
  T keys[kKeys * kStride];
  T values[kKeys * kStride];
  TileRows<Block> rows;
};

// scores = queries keysᵀ, for a warp's rows: 16 for each of its products.
template <class T, int kHeadSize, int kProducts, int kTiles>
__device__ __forceinline__ void score(float (&scores)[kProducts][kTiles][4], const T* queries,
                                      const T* keys, int stride) {
  using Core = TensorCore<T>;
  [[maybe_unused]] constexpr int kUnroll = sizeof(T) == 2 ? kHeadSize / Core::kDepth : 2;
#pragma unroll
  for (int product = 0; product < kProducts; ++product) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        scores[product][tile][i] = 0.0f;
      }
    }
  }
#pragma unroll kUnroll
  for (int depth = 0; depth < kHeadSize; depth += Core::kDepth) {
    typename Core::A a[kProducts];
#pragma unroll
    for (int product = 0; product < kProducts; ++product) {
      Core::load_a(a[product], queries + product * 16 * stride + depth, stride);
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; tile += 2) {
      typename Core::B b[2];
      Core::load_columns(b, keys + tile * 8 * stride + depth, stride);
#pragma unroll
      for (int product = 0; product < kProducts; ++product) {
        Core::multiply_add(scores[product][tile], a[product], b[0]);
        Core::multiply_add(scores[product][tile + 1], a[product], b[1]);
      }
    }
  }
}

// sums += weights values, for the first `count` keys at least; the others have weight 0.
template <class T, int kProducts, int kKeyTiles, int kTiles>
__device__ __forceinline__ void add_values(float (&sums)[kProducts][kTiles][4],
                                           const float (&weights)[kProducts][kKeyTiles][4],
                                           const T* values, int stride, int count) {
  using Core = TensorCore<T>;
#pragma unroll
  for (int key = 0; key < kKeyTiles * 8; key += Core::kDepth) {
    if (sizeof(T) == 4 && key >= count) {
      return;
    }
    typename Core::A a[kProducts];
#pragma unroll
    for (int product = 0; product < kProducts; ++product) {
      Core::round_to_a(a[product], weights[product] + key / 8);
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; tile += 2) {
      typename Core::B b[2];
      Core::load_rows(b, values + key * stride + tile * 8, stride);
#pragma unroll
      for (int product = 0; product < kProducts; ++product) {
        Core::multiply_add(sums[product][tile], a[product], b[0]);
        Core::multiply_add(sums[product][tile + 1], a[product], b[1]);
      }
    }
  }
}

// Weights from scores, in place; decay as in add_scores.
template <bool kMasked, int kTiles, class Block>
__device__ __forceinline__ void weigh(float (&scores)[kTiles][4], RowPair& softmax, Sight& sight,
                                      float (&decay)[2], const AttentionParams& params,
                                      const TileRows<Block>& rows, int first_row,
                                      const SeenTiles<kTiles * 8, kMasked, Block>& tiles, int key,
                                      bool edge) {
  float factor = params.scale_log2;
  if (edge) {
    const LaneKeys<Block> keys(rows, first_row);
    if (kMasked) {
      add_mask(scores, sight, rows, first_row, key, factor, params.args.mask, tiles.task.batch);
    } else if (params.key_mask) {
      add_key_mask(scores, keys, key, factor, params.args.mask, tiles.task.batch);
    } else {
      hide_keys(scores, keys, key, factor);
    }
    factor = 1.0f;
  } else if (kMasked) {
    sight.saw[0] = sight.saw[1] = true;
  }
  add_scores(softmax, scores, factor, decay);
}

// The copies of a block, all of whose threads call together.
template <class T, int kHeadSize, class Block>
struct TileLoads {
  using Tile = AttentionTile<T, kHeadSize, Block>;
  const AttentionParams& params;
  const Task& task;
  Tile& shared;
  int end_key;  // zeros are loaded from there on

  __device__ __forceinline__ void queries() const {
    const AttentionArgs& args = params.args;
    load_tile<Block::kRows, kHeadSize, Block::kThreads>(
        shared.queries, Tile::kStride, Block::kRows, args.head_dim, params.query_vectors,
        [&](int r) {
          const TileRows<Block>& rows = shared.rows;
          return row_at<T>(args.query, args.query_strides, task.batch, rows.head[r], rows.token[r]);
        });
  }
  __device__ __forceinline__ void keys(int key) const {
    const AttentionArgs& args = params.args;
    load(shared.keys, args.key, args.key_strides, key, args.head_dim, params.key_vectors);
  }
  __device__ __forceinline__ void values(int key) const {
    const AttentionArgs& args = params.args;
    load(shared.values, args.value, args.value_strides, key, args.value_dim, params.value_vectors);
  }

 private:
  __device__ __forceinline__ void load(T* tile, const void* tensor, const HeadStrides& strides,
                                       int key, int columns, bool vectors) const {
    const T* first = row_at<T>(tensor, strides, task.batch, task.kv_head, 0);
    load_tile<Tile::kKeys, kHeadSize, Block::kThreads>(
        tile, Tile::kStride, end_key - key, columns, vectors,
        [&](int r) { return first + (key + r) * strides.token; });
  }
};

// The keys of a block: of its split, those from the first to the last that a row sees. It begins
// with a tile, as a split does: then no tile has keys of two splits.
template <int kTileKeys, class Block>
__device__ __forceinline__ KeyRange keys_of_block(const AttentionParams& params,
                                                  const TileRows<Block>& rows) {
  const int first = blockIdx.y * params.keys_per_split;
  const KeyRange seen = keys_of_rows<Block::kRows>(rows, 0).any;
  return {larger(first, seen.first / kTileKeys * kTileKeys),
          smaller(first + params.keys_per_split, seen.end)};
}

// Whether a row saw a key of those that its block computed, where no query has a mask of its own.
// It did if a key has a weight; if none has, all scores that it saw may be -inf.
__device__ __forceinline__ bool saw_any(const KeyRange& row, const KeyRange& block, float sum,
                                        const AttentionParams& params, const Task& task) {
  const KeyRange keys{larger(row.first, block.first), smaller(row.end, block.end)};
  if (sum != 0.0f || !params.key_mask) {
    return !keys.empty();
  }
  return with_elements(params.args.mask, [&](auto* elements) {
    elements += task.batch * params.args.mask.batch;
    bool seen = false;
    for (int key = keys.first; key < keys.end && !seen; ++key) {
      seen = bias_of(elements[key]) != -INFINITY;
    }
    return seen;
  });
}

// Writes the 16 rows of a product, from first_row on, or their partial results if there are several
// splits.
template <class T, int kHeadSize, bool kMasked, int kTiles, class Block>
__device__ __forceinline__ void write_results(AttentionTile<T, kHeadSize, Block>& shared,
                                              const float (&sums)[kTiles][4], RowPair& softmax,
                                              const Sight& sight, int first_row,
                                              const KeyRange& range, const AttentionParams& params,
                                              const Task& task) {
  const TileRows<Block>& rows = shared.rows;
  bool seen[2];
  RowScale scales[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int r = first_row + lane_index() / 4 + 8 * i;
    const float gate =
        rows.is_open(r) ? gate_at<T>(params.args, task.batch, rows.token[r], rows.head[r]) : 0.0f;
    softmax.sum[i] = row_sum(softmax.sum[i]);
    seen[i] = kMasked ? row_any(sight.saw[i])
                      : saw_any(rows.keys[r], range, softmax.sum[i], params, task);
    scales[i] = row_scale(gate, seen[i], softmax.max[i], softmax.sum[i]);
  }
  if (params.splits > 1) {
    write_partials(sums, softmax, seen, first_row, params, task, rows);
  } else {
    write_rows<T, kHeadSize>(shared.queries, shared.kStride, sums, scales, first_row, params, task,
                             rows);
  }
}

// Warps of a multiprocessor at a time, as far as their registers go without any in memory: up to
// 255 of each thread if there are 8 warps, 168 if there are 12, 128 if there are 16.
template <class T, int kHeadSize, class Block, bool kMasked>
constexpr int resident_warps() {
  if (Block::kProducts > 1 || kHeadSize > 128) {
    return 8;
  }
  if (sizeof(T) == 4) {
    return kHeadSize <= 64 && !kMasked ? 12 : 8;
  }
  if (kMasked) {
    return kHeadSize == 80 || kHeadSize == 96 ? 8 : 12;  // 128 has half of their keys
  }
  return kHeadSize <= 32 ? 16 : 12;
}
template <class T, int kHeadSize, class Block, bool kMasked>
constexpr int kResidentBlocks =
    resident_warps<T, kHeadSize, Block, kMasked>() * kWarpSize / Block::kThreads;

template <class T, int kHeadSize, class Block, bool kMasked>
__global__ void __launch_bounds__(Block::kThreads, kResidentBlocks<T, kHeadSize, Block, kMasked>)
    attend(const AttentionParams params) {
  using Tile = AttentionTile<T, kHeadSize, Block>;
  constexpr int kStride = Tile::kStride, kKeys = Tile::kKeys, kProducts = Block::kProducts;
  Tile& shared = *reinterpret_cast<Tile*>(shared_memory());
  const TileRows<Block>& rows = shared.rows;

  const Task task = task_of_block<Block>(params);
  if (task.rows == 0) {
    return;
  }
  load_tile_rows<T>(shared.rows, params, task);
  __syncthreads();

  KeyRange range = keys_of_block<kKeys>(params, rows);
  const TileLoads<T, kHeadSize, Block> load{params, task, shared, range.end};
  SeenTiles<kKeys, kMasked, Block> tiles{params, task, rows, range.end};
  range.first = tiles.start(range.first);
  const int warp_row = warp_index() * Block::kWarpRows;
  const RowsKeys warp = keys_of_rows<Block::kWarpRows>(rows, warp_row);
  Sight sight[kProducts];
  RowPair softmax[kProducts];
  float sums[kProducts][kHeadSize / 8][4] = {};

  if (range.first < range.end) {
    load.queries();
    load.keys(range.first);
    commit_copies();
  }
  for (int key = range.first; key < range.end;) {
    const bool works = key + kKeys > warp.any.first && key < warp.any.end;
    // Where each row of the warp sees every key, the scale can wait for the exponent.
    const bool edge = key < warp.all.first || key + kKeys > warp.all.end || !tiles.is_whole(key) ||
                      !(params.scale_log2 > 0.0f);
    const int next_key = tiles.next(key + kKeys);
    float scores[kProducts][kKeys / 8][4];
    wait_for_copies<0>();
    __syncthreads();  // keys are here, and values no longer in use
    load.values(key);
    commit_copies();
    if (works) {
      score<T, kHeadSize>(scores, shared.queries + warp_row * kStride, shared.keys, kStride);
    }
    wait_for_copies<0>();
    __syncthreads();  // values are here, and keys no longer in use
    if (next_key < range.end) {
      load.keys(next_key);
      commit_copies();
    }
    if (works) {
#pragma unroll
      for (int product = 0; product < kProducts; ++product) {
        float decay[2];
        weigh<kMasked>(scores[product], softmax[product], sight[product], decay, params, rows,
                       warp_row + 16 * product, tiles, key, edge);
        scale_rows(sums[product], decay);
      }
      add_values(sums, scores, shared.values, kStride, warp.any.end - key);
    }
    key = next_key;
  }
#pragma unroll
  for (int product = 0; product < kProducts; ++product) {
    write_results<T, kHeadSize, kMasked>(shared, sums[product], softmax[product], sight[product],
                                         warp_row + 16 * product, range, params, task);
  }
}

}  // namespace moh::cuda
