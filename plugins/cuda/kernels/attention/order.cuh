// In which order blocks take the tiles of rows: the longest causal ones first, over all pairs of a
// section. A GPU then ends with the shortest, and no multiprocessor is left alone with a long one.
#pragma once

#include <cstdint>

#include "cuda/device/integers.cuh"

namespace moh::cuda {

// The grid has a block for each tile that there could be: `row_tiles` for each pair. Pairs of a
// section take turns; sections follow each other, so that their keys and values stay in the L2
// cache.
struct Turn {
  int pair;
  int rank;  // of [0, row_tiles): the pair's rank-th turn
};
__host__ __device__ __forceinline__ Turn turn_of_block(int block, int pairs, int row_tiles,
                                                       int section_pairs) {
  const int first_pair = block / (section_pairs * row_tiles) * section_pairs;
  const int together = smaller(pairs - first_pair, section_pairs);
  const int in_section = block - first_pair * row_tiles;
  return {first_pair + in_section % together, in_section / together};
}

// The tile, counted from the pair's last, of its rank-th turn; -1: none. A pair's tiles are spread
// evenly over its turns: at one rank all pairs are at about the same key, whatever their numbers of
// tiles.
__host__ __device__ __forceinline__ int tile_of_turn(int rank, int tiles, int row_tiles) {
  const int before = static_cast<int>(ceil_div(int64_t{rank} * tiles, int64_t{row_tiles}));
  const int after = static_cast<int>(ceil_div(int64_t{rank + 1} * tiles, int64_t{row_tiles}));
  return before < after ? before : -1;
}

}  // namespace moh::cuda
