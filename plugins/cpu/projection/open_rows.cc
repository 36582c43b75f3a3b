#include "cpu/projection/open_rows.h"

#include <algorithm>

namespace moh::cpu {
namespace {

// Enough rows to use a panel of weights often while it is in the cache, few enough for tasks of
// several threads.
constexpr int64_t kMostTokensPerBlock = 96;

}  // namespace

void OpenRows::make(DType dtype, const void* gates, const Sizes& sizes) {
  sizes_ = sizes;
  const auto tokens = static_cast<size_t>(sizes.tokens);
  const auto heads = static_cast<size_t>(sizes.heads);
  const auto heads_per_group = static_cast<size_t>(sizes.heads_per_group);
  blocks_ = (tokens + kMostTokensPerBlock - 1) / kMostTokensPerBlock;
  groups_ = (heads + heads_per_group - 1) / heads_per_group;
  lists_per_group_ = heads_per_group == 1 ? 1 : 3;
  tokens_per_block_ = blocks_ == 0 ? 0 : (tokens + blocks_ - 1) / blocks_;
  counts_.assign(blocks_ * groups_ * lists_per_group_, 0);
  rows_.resize(counts_.size() * tokens_per_block_);
  fill(dtype, gates);
}

TokenBlock OpenRows::block_at(size_t block) const {
  const auto size = static_cast<int64_t>(tokens_per_block_);
  const int64_t begin = std::min(static_cast<int64_t>(block) * size, sizes_.tokens);
  return {begin, static_cast<int32_t>(std::min(size, sizes_.tokens - begin))};
}

RowList OpenRows::list_at(size_t block, size_t group, size_t list) const {
  const size_t index = (block * groups_ + group) * lists_per_group_ + list;
  const int32_t first = static_cast<int32_t>(group) * sizes_.heads_per_group;
  return {rows_.data() + index * tokens_per_block_, counts_[index], first + (list == 1 ? 1 : 0),
          list == 2 ? 2 : 1};
}

void OpenRows::fill(DType dtype, const void* gates) {
  const auto heads = static_cast<size_t>(sizes_.heads);
  const auto heads_per_group = static_cast<size_t>(sizes_.heads_per_group);
  int64_t gate = 0;
  for (size_t block = 0; block < blocks_; ++block) {
    const int32_t tokens = block_at(block).count;
    for (int32_t row = 0; row < tokens; ++row) {
      for (size_t group = 0; group < groups_; ++group) {
        size_t chosen = is_open(dtype, gates, gate++) ? 1 : 0;
        if (heads_per_group == 2 && 2 * group + 1 < heads && is_open(dtype, gates, gate++)) {
          chosen += 2;
        }
        if (chosen != 0) {
          const size_t list = (block * groups_ + group) * lists_per_group_ + chosen - 1;
          rows_[list * tokens_per_block_ + static_cast<size_t>(counts_[list]++)] = row;
        }
      }
    }
  }
}

}  // namespace moh::cpu
