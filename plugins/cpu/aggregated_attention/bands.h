// How the work is divided: an image into bands of tokens, for each image and head.
#pragma once

#include <algorithm>
#include <cstddef>

#include "moh/aggregated_attention.h"

namespace moh::cpu {

// Tokens [begin, end) of an image, one head of them.
struct Band {
  size_t batch, head, begin, end;

  size_t tokens() const { return end - begin; }
};

// Depends on the arguments alone, not on threads. A token's bits do not depend on its band.
class Bands {
 public:
  // `granule` tokens are computed at once.
  Bands(const AggregatedAttentionArgs& args, size_t granule) : args_(args) {
    tokens_ = static_cast<size_t>(args.height) * static_cast<size_t>(args.width);
    const size_t most = round_up(std::max(kMostTokens, kMostHalos * halo(args)), granule);
    bands_ = std::max<size_t>(1, (tokens_ + most - 1) / most);
    length_ = round_up((tokens_ + bands_ - 1) / bands_, granule);
  }

  size_t count() const {
    return static_cast<size_t>(args_.batch) * bands_ * static_cast<size_t>(args_.heads);
  }

  // Heads of a band follow each other: their data lie side by side.
  Band operator[](size_t i) const {
    const auto heads = static_cast<size_t>(args_.heads);
    const size_t band = i / heads % bands_;
    return {i / heads / bands_, i % heads, std::min(tokens_, band * length_),
            std::min(tokens_, (band + 1) * length_)};
  }

  // How far in front of a token, and behind it, its first and last neighbours are.
  static size_t halo(const AggregatedAttentionArgs& args) {
    return static_cast<size_t>(args.kernel_height / 2) * static_cast<size_t>(args.width) +
           static_cast<size_t>(args.kernel_width / 2);
  }

 private:
  // Keys and values of a band stay in the second cache, and its halo, which other bands read again,
  // is a small part of it.
  static constexpr size_t kMostTokens = 480;
  static constexpr size_t kMostHalos = 4;

  static size_t round_up(size_t n, size_t multiple) {
    return (n + multiple - 1) / multiple * multiple;
  }

  const AggregatedAttentionArgs& args_;
  size_t tokens_, bands_, length_;
};

}  // namespace moh::cpu
