// What the kernels of MoHAttention are called with.
//
// Rows: the (query, q_head) pairs of one batch and KV head, a "pair", read the same keys and
// values. A row's id is query * group + (head within its group), so that ids are in the order of
// queries. A row's place is where it stands among the rows that are computed: its id, if all are.
#pragma once

#include <cstdint>

#include "moh/attention.h"

namespace moh::cuda {

// Results for a part of the keys, to be combined.
struct Partials {
  float* max_and_sum;  // [split, pair, place, 2]: log2 of the largest weight; what the weights sum
                       // up to in units of that. No key seen: 0
  float* output;       // [split, pair, place, columns]: values, times weights in these units
  int32_t columns;     // value_dim, rounded up to 8
};

// Of a mask that differs from query to query or from head to head.
constexpr int kMapQueries = 16;  // of an entry
struct MaskMap {
  static constexpr uint8_t kHidden = 0, kMixed = 1, kWhole = 2;  // whole: nothing is added, either

  const uint8_t* states;  // [batch or 1, head or 1, part of the queries, tile of the keys]
  int32_t batches, heads, parts, tiles;
  int32_t tile_keys;
};

struct AttentionParams {
  AttentionArgs args;
  const int32_t* rows;    // [pair, place]: ids of rows with open gates; null: all rows
  const int32_t* counts;  // [pair]: how many
  Partials partials;
  MaskMap map;             // states are null where the mask is another, or none
  int32_t group;           // q_heads / kv_heads
  int32_t rows_per_pair;   // queries * group
  int32_t row_tiles;       // of a pair, if all rows are computed
  int32_t section_pairs;   // pairs whose tiles alternate in the grid
  int32_t keys_per_split;  // a multiple of 64
  int32_t splits;
  float scale_log2;  // scale * log2(e)
  // Whether rows are made of whole, aligned 16 bytes.
  bool query_vectors, key_vectors, value_vectors, output_vectors;
  bool key_mask;  // args.mask is the same for all queries and heads
};

struct CompactParams {
  AttentionArgs args;
  int32_t* rows;    // [pair, place]
  int32_t* counts;  // [pair]
  int32_t pairs, group, rows_per_pair;
  bool output_vectors;
};

}  // namespace moh::cuda
