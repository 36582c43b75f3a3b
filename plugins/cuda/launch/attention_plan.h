// How an attention is divided into launches, and where its workspace has what.
#pragma once

#include <cstddef>

#include "cuda/kernels/attention/params.h"
#include "moh/cuda.h"

namespace moh::cuda {

constexpr int32_t kMaxHeadSize = 256;
constexpr int32_t kMaxKeySplits = 128;

// Sizes, strides and pointers that are alright. Pointers are looked at by check_pointers only.
Status check_attention(const AttentionArgs& args);
Status check_choice(const AttentionArgs& args, const AttentionChoice& choice);
Status check_pointers(const AttentionArgs& args);

// One function decides, and says why. open_share: of the gates, as far as the caller knows.
AttentionChoice choose_attention(const AttentionArgs& args, const Device& device, float open_share);
// Adds which kernel computes the rows.
void choose_kernel(const AttentionArgs& args, const Device& device, AttentionChoice& choice);

// Whether there is a kernel with such a block for tensors like these.
bool has_block(const AttentionArgs& args, AttentionBlock block);

// Offsets in bytes; parts that are not needed have size 0.
struct WorkspaceLayout {
  size_t counts, rows, max_and_sum, output, mask_map, bytes;
};
WorkspaceLayout lay_out(const AttentionArgs& args, const AttentionChoice& choice);

// Of each part of the keys but the last; a multiple of every tile of keys.
int32_t keys_per_split(const AttentionArgs& args, int32_t splits);

AttentionParams attention_params(const AttentionArgs& args, const AttentionChoice& choice,
                                 void* workspace);
// Of args.mask; none of its entries where it needs no map.
MaskMap mask_map(const AttentionArgs& args, AttentionBlock block);
inline size_t entries_of(const MaskMap& map) {
  return size_t{1} * static_cast<size_t>(map.batches) * static_cast<size_t>(map.heads) *
         static_cast<size_t>(map.parts) * static_cast<size_t>(map.tiles);
}

CompactParams compact_params(const AttentionArgs& args, const AttentionParams& params);

inline int32_t rows_of(AttentionBlock block) {
  return block == AttentionBlock::k128By32 ? 128 : 64;
}

inline int32_t rows_per_pair(const AttentionArgs& args) {
  return args.queries * (args.q_heads / args.kv_heads);
}

}  // namespace moh::cuda
