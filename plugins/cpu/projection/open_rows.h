// From gates to lists of the rows that a projection multiplies.
#pragma once

#include <vector>

#include "moh/tensor.h"

namespace moh::cpu {

// Whether gate number `index` is neither 0 nor -0, of any type: the sign is the first bit.
inline bool is_open(DType dtype, const void* gates, int64_t index) {
  return dtype == DType::kFloat32 ? static_cast<const uint32_t*>(gates)[index] << 1 != 0
                                  : (static_cast<const uint16_t*>(gates)[index] & 0x7fff) != 0;
}

// Tokens of a block, counted from its first one, in their order.
struct RowList {
  const int32_t* rows;
  int32_t count;
  int32_t first_head, heads;  // that all of these tokens chose
};

struct TokenBlock {
  int64_t begin;
  int32_t count;
};

// Tokens are cut into blocks, heads into groups of one or two. In a block, the tokens that chose
// something of a group are listed by what they chose: a list each for the first head alone, for the
// second alone, and for both.
class OpenRows {
 public:
  struct Sizes {
    int64_t tokens;
    int32_t heads;
    int32_t heads_per_group;  // 1 or 2
  };

  // `gates` is [tokens, heads].
  void make(DType dtype, const void* gates, const Sizes& sizes);

  size_t blocks() const { return blocks_; }
  size_t groups() const { return groups_; }
  size_t lists_per_group() const { return lists_per_group_; }

  // The blocks have about one size, which depends on the number of tokens alone.
  TokenBlock block_at(size_t block) const;
  RowList list_at(size_t block, size_t group, size_t list) const;

 private:
  void fill(DType dtype, const void* gates);

  Sizes sizes_{};
  size_t blocks_ = 0, groups_ = 0, lists_per_group_ = 0, tokens_per_block_ = 0;
  std::vector<int32_t> rows_;    // [block, group, list, token]
  std::vector<int32_t> counts_;  // [block, group, list]
};

}  // namespace moh::cpu
