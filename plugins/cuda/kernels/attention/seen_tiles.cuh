// Which tiles of keys a mask hides from all rows of a block, and which it leaves whole: looked up
// for as many tiles as a warp has lanes.
#pragma once

#include "cuda/kernels/attention/mask.cuh"

namespace moh::cuda {

// kMasked: by a map of the mask; else by the mask itself, one for all queries and heads, if there
// is one.
template <int kKeys, bool kMasked, class Block>
struct SeenTiles {
  static constexpr int kSpan = kWarpSize * kKeys;
  static constexpr int kTogether = kKeys / 8;  // tiles that are looked up at a time

  const AttentionParams& params;
  const Task& task;
  const TileRows<Block>& rows;
  int end;            // of the keys
  uint32_t any, all;  // a bit for each tile of the span that was looked up last

  // The first tile with a seen key, of a loop that begins with `key`; `end` or more: there is no
  // such tile. All lanes of a warp call.
  __device__ __forceinline__ int start(int key) {
    if (has_mask() && key < end) {
      look_up(key / kSpan * kSpan);
    }
    return next(key);
  }

  // The same of a loop that goes on with `key`.
  __device__ __forceinline__ int next(int key) {
    if (!has_mask()) {
      return key;
    }
    while (key < end) {
      if (key % kSpan == 0) {
        look_up(key);
      }
      const uint32_t left = any >> bit_of(key);
      if (left != 0) {
        return key + (__ffs(static_cast<int>(left)) - 1) * kKeys;
      }
      key += kSpan - key % kSpan;
    }
    return key;
  }

  // Whether every key is seen of a tile that next() gave.
  __device__ __forceinline__ bool is_whole(int key) const {
    return !has_mask() || (all >> bit_of(key) & 1) != 0;
  }

 private:
  __device__ __forceinline__ static int bit_of(int key) { return key / kKeys % kWarpSize; }

  __device__ __forceinline__ bool has_mask() const { return kMasked || params.key_mask; }

  __device__ __forceinline__ void look_up(int key) {
    if (kMasked) {
      look_up_map(key / kKeys);
    } else {
      look_up_mask(key);
    }
  }

  // Of tiles from `first` on, a lane each: what the map says of all rows of the block.
  __device__ __forceinline__ void look_up_map(int first) {
    const MaskMap& map = params.map;
    const int tile = first + lane_index();
    const int batch = map.batches == 1 ? 0 : task.batch;
    const int first_head = map.heads == 1 ? 0 : task.kv_head * params.group;
    const int heads = map.heads == 1 ? 1 : params.group;
    const int first_part = map.parts == 1 ? 0 : rows.token[0] / kMapQueries;
    const int last_part = map.parts == 1 ? 0 : rows.token[task.rows - 1] / kMapQueries;
    bool some = false, every = true;
    for (int head = first_head; head < first_head + heads; ++head) {
      for (int part = first_part; part <= last_part; ++part) {
        const int64_t row = int64_t{batch * map.heads + head} * map.parts + part;
        const uint8_t state =
            tile < map.tiles ? map.states[row * map.tiles + tile] : MaskMap::kHidden;
        some |= state != MaskMap::kHidden;
        every &= state == MaskMap::kWhole;
      }
    }
    any = __ballot_sync(kAllLanes, some);
    all = __ballot_sync(kAllLanes, every);
  }

  __device__ __forceinline__ void look_up_mask(int key) {
    any = all = 0;
    with_elements(params.args.mask, [&](auto* elements) {
      elements += task.batch * params.args.mask.batch;
#pragma unroll kTogether
      for (int tile = 0; tile < kWarpSize; ++tile) {
        bool some = false, every = true;
#pragma unroll
        for (int i = 0; i < kKeys; i += kWarpSize) {
          const int lane_key = key + tile * kKeys + i + lane_index() % smaller(kKeys, kWarpSize);
          const float bias = lane_key < end ? bias_of(elements[lane_key]) : -INFINITY;
          some |= bias != -INFINITY;
          every &= bias == 0.0f;
        }
        any |= (__ballot_sync(kAllLanes, some) != 0 ? 1u : 0u) << tile;
        all |= (__ballot_sync(kAllLanes, every) == kAllLanes ? 1u : 0u) << tile;
      }
    });
  }
};

}  // namespace moh::cuda
