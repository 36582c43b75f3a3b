// MoHAttention, one block for up to 64 rows of a (batch, KV head) pair and a range of keys: scores,
// softmax and values of a tile of keys at a time, all sums in registers.
//
// A warp has 16 rows. Keys and values have one buffer each, and are loaded in turn: values arrive
// while scores are computed, and the next keys while values are added.
#pragma once

#include "cuda/device/softmax.cuh"
#include "cuda/device/tensor_core.cuh"
#include "cuda/device/tile.cuh"
#include "cuda/kernels/attention/mask.cuh"
#include "cuda/kernels/attention/output.cuh"
#include "cuda/kernels/attention/rows.cuh"

namespace moh::cuda {

// Sizes for heads of up to kHeadSize. Shared memory is for every GPU from sm_80 on; the number of
// keys also keeps scores and sums within 255 registers.
template <class T, int kHeadSize>
struct AttentionTile {
  static_assert(kHeadSize % 16 == 0, "two tiles of 8 columns at a time");
  static constexpr int kKeys =
      sizeof(T) == 2 ? (kHeadSize <= 192 ? 64 : 32) : (kHeadSize <= 192 ? 32 : 16);
  static constexpr int kStride = kHeadSize + TensorCore<T>::kPadding;
  static constexpr size_t kSharedBytes =
      (kTileRows + 2 * kKeys) * kStride * sizeof(T) + sizeof(TileRows);
  static_assert(kSharedBytes <= 99 * 1024, "more than sm_86 and sm_120 have");

  T queries[kTileRows * kStride];  // later the staging of outputs
  T keys[kKeys * kStride];
  T values[kKeys * kStride];
  TileRows rows;
};

// scores = queries keysᵀ, for a warp's 16 rows.
template <class T, int kHeadSize, int kTiles>
__device__ __forceinline__ void score(float (&scores)[kTiles][4], const T* queries, const T* keys,
                                      int stride) {
  using Core = TensorCore<T>;
  [[maybe_unused]] constexpr int kUnroll = sizeof(T) == 2 ? kHeadSize / Core::kDepth : 2;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      scores[tile][i] = 0.0f;
    }
  }
#pragma unroll kUnroll
  for (int depth = 0; depth < kHeadSize; depth += Core::kDepth) {
    typename Core::A a;
    Core::load_a(a, queries + depth, stride);
#pragma unroll
    for (int tile = 0; tile < kTiles; tile += 2) {
      typename Core::B b[2];
      Core::load_columns(b, keys + tile * 8 * stride + depth, stride);
      Core::multiply_add(scores[tile], a, b[0]);
      Core::multiply_add(scores[tile + 1], a, b[1]);
    }
  }
}

// sums += weights values, for the first `count` keys at least; the others have weight 0.
template <class T, int kKeyTiles, int kTiles>
__device__ __forceinline__ void add_values(float (&sums)[kTiles][4],
                                           const float (&weights)[kKeyTiles][4], const T* values,
                                           int stride, int count) {
  using Core = TensorCore<T>;
#pragma unroll
  for (int key = 0; key < kKeyTiles * 8; key += Core::kDepth) {
    if (sizeof(T) == 4 && key >= count) {
      return;
    }
    typename Core::A a;
    Core::round_to_a(a, weights + key / 8);
#pragma unroll
    for (int tile = 0; tile < kTiles; tile += 2) {
      typename Core::B b[2];
      Core::load_rows(b, values + key * stride + tile * 8, stride);
      Core::multiply_add(sums[tile], a, b[0]);
      Core::multiply_add(sums[tile + 1], a, b[1]);
    }
  }
}

// Weights from scores, in place; decay as in add_scores.
template <bool kMasked, int kTiles>
__device__ __forceinline__ void weigh(float (&scores)[kTiles][4], RowPair& softmax, Sight& sight,
                                      float (&decay)[2], const AttentionParams& params, int key,
                                      bool edge) {
  float factor = params.scale_log2;
  if (kMasked) {
    add_mask(scores, sight, key, factor, params.args.mask);
    factor = 1.0f;
  } else if (edge) {
    hide_keys(scores, sight, key, factor);
    factor = 1.0f;
  }
  add_scores(softmax, scores, factor, decay);
}

// Blocks of a multiprocessor at a time, as far as their registers go without any in memory.
template <class T, int kHeadSize, bool kMasked>
constexpr int kResidentBlocks = sizeof(T) == 4    ? 1
                                : kHeadSize <= 64 ? (kMasked ? 3 : 4)
                                                  : (kMasked || kHeadSize > 128 ? 1 : 3);

template <class T, int kHeadSize, bool kMasked>
__global__ void __launch_bounds__(kAttentionThreads, kResidentBlocks<T, kHeadSize, kMasked>)
    attend(const AttentionParams params) {
  using Tile = AttentionTile<T, kHeadSize>;
  constexpr int kStride = Tile::kStride, kKeys = Tile::kKeys;
  const AttentionArgs& args = params.args;
  Tile& shared = *reinterpret_cast<Tile*>(shared_memory());
  const TileRows& rows = shared.rows;

  const Task task = task_of_block(params);
  if (task.rows == 0) {
    return;
  }
  load_tile_rows<T>(shared.rows, params, task);
  __syncthreads();

  const int first_key = blockIdx.y * params.keys_per_split;
  const int last_visible = visible_keys(args, rows.token[kTileRows - 1]);
  const int end_key =
      any_open_in_tile(rows) ? smaller(last_visible, first_key + params.keys_per_split) : first_key;
  const T* keys = row_at<T>(args.key, args.key_strides, task.batch, task.kv_head, 0);
  const T* values = row_at<T>(args.value, args.value_strides, task.batch, task.kv_head, 0);
  const auto load_queries = [&] {
    load_tile<kTileRows, kHeadSize, kAttentionThreads>(
        shared.queries, kStride, kTileRows, args.head_dim, params.query_vectors, [&](int r) {
          return row_at<T>(args.query, args.query_strides, task.batch, rows.head[r], rows.token[r]);
        });
  };
  const auto load_keys = [&](int key) {
    load_tile<kKeys, kHeadSize, kAttentionThreads>(
        shared.keys, kStride, end_key - key, args.head_dim, params.key_vectors,
        [&](int r) { return keys + (key + r) * args.key_strides.token; });
  };
  const auto load_values = [&](int key) {
    load_tile<kKeys, kHeadSize, kAttentionThreads>(
        shared.values, kStride, end_key - key, args.value_dim, params.value_vectors,
        [&](int r) { return values + (key + r) * args.value_strides.token; });
  };

  const int warp_row = warp_index() * kWarpRows;
  const int warp_end =
      any_open_in_warp(rows) ? visible_keys(args, rows.token[warp_row + kWarpRows - 1]) : 0;
  // Before this key, each row of the warp sees every key, and scores need no factor of their own.
  const int edge_key = params.scale_log2 > 0.0f ? visible_keys(args, rows.token[warp_row]) : 0;
  Sight sight = sight_of_lane(args, rows, task.batch);
  RowPair softmax;
  float sums[kHeadSize / 8][4] = {};

  if (first_key < end_key) {
    load_queries();
    load_keys(first_key);
    commit_copies();
  }
  for (int key = first_key; key < end_key; key += kKeys) {
    float scores[kKeys / 8][4];
    wait_for_copies<0>();
    __syncthreads();
    load_values(key);
    commit_copies();
    const bool works = key < warp_end;
    if (works) {
      score<T, kHeadSize>(scores, shared.queries + warp_row * kStride, shared.keys, kStride);
    }
    wait_for_copies<0>();
    __syncthreads();
    if (key + kKeys < end_key) {
      load_keys(key + kKeys);
      commit_copies();
    }
    if (works) {
      float decay[2];
      weigh<kMasked>(scores, softmax, sight, decay, params, key, key + kKeys > edge_key);
      scale_rows(sums, decay);
      add_values(sums, scores, shared.values, kStride, warp_end - key);
    }
  }

  bool seen[2];
  RowScale scales[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    softmax.sum[i] = row_sum(softmax.sum[i]);
    seen[i] = kMasked ? row_any(sight.saw[i]) : first_key < sight.visible[i];
    scales[i] = row_scale(rows.gate[warp_row + lane_index() / 4 + 8 * i], seen[i], softmax.max[i],
                          softmax.sum[i]);
  }
  if (params.splits > 1) {
    write_partials(sums, softmax, seen, params, task, rows);
  } else {
    write_rows<T, kHeadSize>(shared.queries, kStride, sums, scales, params, task, rows);
  }
}

}  // namespace moh::cuda
