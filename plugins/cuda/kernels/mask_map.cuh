// What a mask that differs from query to query leaves of each tile of keys, for a few queries each:
// so that attention need not read what is hidden, nor the mask of what is seen.
#pragma once

#include "cuda/kernels/attention/mask.cuh"

namespace moh::cuda {

constexpr int kMapThreads = 256;

struct MaskMapParams {
  AttentionArgs args;
  MaskMap map;
  uint8_t* states;  // map.states
  int64_t entries;
};

// A warp an entry.
__global__ void __launch_bounds__(kMapThreads) map_mask(const MaskMapParams params) {
  const int64_t entry = int64_t{blockIdx.x} * (kMapThreads / kWarpSize) + warp_index();
  if (entry >= params.entries) {
    return;
  }
  const MaskMap& map = params.map;
  const AttentionMask& mask = params.args.mask;
  const int first_key = static_cast<int>(entry % map.tiles) * map.tile_keys;
  const int64_t part = entry / map.tiles;
  const int first_query = static_cast<int>(part % map.parts) * kMapQueries;
  const int plane = static_cast<int>(part / map.parts);
  const int head = plane % map.heads, batch = plane / map.heads;
  const int end_key = smaller(first_key + map.tile_keys, params.args.keys);
  const int end_query =
      smaller(first_query + kMapQueries, mask.query == 0 ? 1 : params.args.queries);
  bool some = false, every = true;
  with_elements(mask, [&](auto* elements) {
    elements += batch * mask.batch + head * mask.head;
    for (int key = first_key + lane_index(); key < end_key; key += kWarpSize) {
#pragma unroll 4
      for (int query = first_query; query < end_query; ++query) {
        const float bias = bias_of(elements[query * mask.query + key * mask.key]);
        some |= bias != -INFINITY;
        every &= bias == 0.0f;
      }
    }
  });
  const bool any_seen = __ballot_sync(kAllLanes, some) != 0;
  const bool all_seen = __ballot_sync(kAllLanes, every) == kAllLanes;
  if (lane_index() == 0) {
    params.states[entry] = all_seen   ? MaskMap::kWhole
                           : any_seen ? MaskMap::kMixed
                                      : MaskMap::kHidden;
  }
}

}  // namespace moh::cuda
