// Which keys a row sees. Whatever hides keys becomes a first key and an end, found once a call:
// the loops over keys know nothing else.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "moh/attention.h"

namespace moh::cpu {

// The (query, q_head) pair of a place; see Task.
struct Row {
  int32_t query, head;
};

// Keys [first, end).
struct KeyRange {
  int32_t first, end;
  bool empty() const { return first >= end; }
  int32_t size() const { return empty() ? 0 : end - first; }
  KeyRange joined(KeyRange other) const {
    return {std::min(first, other.first), std::max(end, other.end)};
  }
  // An empty one begins behind all keys: it does not widen the range of rows together.
  static KeyRange none() { return {std::numeric_limits<int32_t>::max(), 0}; }
};

// How many keys are filled: what lies behind them is never read.
inline int32_t filled_keys(const AttentionArgs& args, int32_t batch) {
  return args.nonpad_kv_seqlen == nullptr ? args.keys
                                          : static_cast<int32_t>(args.nonpad_kv_seqlen[batch]);
}

// What is_causal, nonpad_kv_seqlen and key_ranges leave of the keys.
inline KeyRange range_by_position(const AttentionArgs& args, int32_t batch, int32_t query) {
  const int32_t keys = filled_keys(args, batch);
  int64_t first = 0, end = keys;
  if (args.causal) {
    end = int64_t{query} + keys - args.queries + 1;
  }
  if (args.key_ranges != nullptr) {
    const int64_t* range = args.key_ranges + batch * args.key_ranges_batch + 2 * int64_t{query};
    first = std::max(first, range[0]);
    end = std::min(end, range[1]);
  }
  return first < end ? KeyRange{static_cast<int32_t>(first), static_cast<int32_t>(end)}
                     : KeyRange::none();
}

struct Sight {
  KeyRange range;  // keys outside are hidden; a row with an empty range sees no key
  bool masked;     // attn_mask does something to a key within; else it adds 0 to each
  bool bounded;    // finite biases hide, so long as scores are not too large
  float least;     // of the biases within, times log2(e), those that do not hide are above it
};

// Those of all rows. A stride is 0 along an axis that they do not depend on.
struct Sights {
  const Sight* data;
  ptrdiff_t batch, head, query;
  const float* longest_keys;  // [batch, kv_head]: norms, or infinite where that was not found out

  const Sight& at(int32_t of_batch, Row row) const {
    return data[of_batch * batch + row.head * head + row.query * query];
  }
};

}  // namespace moh::cpu
