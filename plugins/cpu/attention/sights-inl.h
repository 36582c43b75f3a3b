// Finds out which keys each row sees: by position, and within those what attn_mask leaves.
#if defined(MOH_CPU_ATTENTION_SIGHTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOH_CPU_ATTENTION_SIGHTS_INL_H_
#undef MOH_CPU_ATTENTION_SIGHTS_INL_H_
#else
#define MOH_CPU_ATTENTION_SIGHTS_INL_H_
#endif

#include <atomic>
#include <cmath>
#include <type_traits>
#include <vector>

#include "cpu/attention/addressing.h"
#include "cpu/attention/mask-inl.h"
#include "cpu/attention/sight.h"
#include "cpu/for_each.h"
#include "cpu/prefetch.h"
#include "cpu/simd/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace moh::cpu {
namespace HWY_NAMESPACE {

// A finite bias hides a key if it lies so far below that of another key the row sees, unless scores
// are as large as that. -10000 and all that masks are made with lie below -kFar.
constexpr float kFar = 6000.0f;
// So far below no score of finite queries and keys of sane size reaches up: the lowest number hides
// without a look at them.
constexpr float kFarthest = 8.5e37f;
// A best bias beyond this is rounded by more than what kFar leaves unused.
constexpr float kMostBias = 1e6f;

// Whether kFar is enough for a row's queries and keys of these norms (the queries' times scale *
// log2(e)): a key's weight is 0 from 160 powers of two below the largest on, and rounding to
// bfloat16 makes products larger by 1 % at most. False for NaN.
inline bool far_is_enough(float query, float key) {
  return 2.04f * query * key + 160.0f < 0.99f * kFar * kLog2E;
}

// The norm of the longest of some rows, or more; infinite if an element is not finite.
class Longest {
 public:
  HWY_INLINE Longest() : most_(hn::Zero(DF())), all_(most_) {}
  template <typename T>
  HWY_INLINE void add(const T* row, size_t size) {
    VF sum = hn::Zero(DF());
    for (size_t d = 0; d < size; d += kLanes) {
      const VF part = load_part(row, d, size);
      sum = hn::MulAdd(part, part, sum);
    }
    // The largest of each lane bounds the largest sum of lanes. Max loses NaN, a sum does not.
    most_ = hn::Max(most_, sum);
    all_ = hn::Add(all_, sum);
  }
  HWY_INLINE float norm() const {
    const float most = std::sqrt(hn::ReduceSum(DF(), most_));
    return hn::ReduceSum(DF(), all_) < kInfinity ? most : kInfinity;
  }

 private:
  VF most_, all_;
};

// As many keys of a mask's row as are looked at together.
template <typename M>
struct MaskPart {
  using D = DF;
  static constexpr bool kFinite = true;  // biases may hide and be finite
  static HWY_INLINE VF load(const M* from, size_t count) {
    return count == kLanes ? load_floats(from) : load_first(from, count);
  }
  static HWY_INLINE hn::Mask<D> hidden(VF x, VF limit) { return hn::Le(x, limit); }
  static HWY_INLINE hn::Mask<D> neutral(VF x) { return hn::Eq(x, hn::Zero(DF())); }
};
template <>
struct MaskPart<uint8_t> {
  using D = hn::ScalableTag<uint8_t>;
  using V = hn::Vec<D>;
  static constexpr bool kFinite = false;
  static HWY_INLINE V load(const uint8_t* from, size_t count) {
    return count == hn::Lanes(D()) ? hn::LoadU(D(), from) : hn::LoadN(D(), from, count);
  }
  static HWY_INLINE hn::Mask<D> hidden(V x, VF) { return hn::Eq(x, hn::Zero(D())); }
  static HWY_INLINE hn::Mask<D> neutral(V x) { return hn::Not(hn::Eq(x, hn::Zero(D()))); }
};

// A row of a mask, from key 0 on.
template <typename M>
class MaskRow {
 public:
  explicit MaskRow(const M* row) : row_(row) {}

  // What the mask leaves of `range`. `own` is the key that the query stands at.
  HWY_NOINLINE Sight look(KeyRange range, int32_t own) const {
    float limit = -kInfinity;  // what is not above it hides
    if constexpr (Part::kFinite) {
      const float best = best_bias(range, own);
      limit = std::fabs(best) < kMostBias ? best - kFar : limit;
    }
    VF most_hidden = hn::Set(DF(), -kInfinity);
    range = trimmed(range, limit, most_hidden);
    const bool bounded = hn::ReduceMax(DF(), most_hidden) > -kFarthest;
    if (!bounded && limit > -kInfinity) {
      limit = -kFarthest;
    }
    return {range, !all_neutral(range), bounded, limit * kLog2E};
  }

 private:
  using Part = MaskPart<M>;
  using D = typename Part::D;

  // A bias that the row's best is not below: of the first keys or its own, which most rows see, or
  // else the best.
  float best_bias(KeyRange range, int32_t own) const {
    const auto first_keys = static_cast<int32_t>(count_at(range.first, range.end));
    float best = best_of({range.first, range.first + first_keys});
    if (!(best >= -kFar)) {
      best = scalar_of(row_[std::clamp(own, range.first, range.end - 1)]);
    }
    return best >= -kFar ? best : best_of(range);
  }

  float best_of(KeyRange range) const {
    const DF df;
    VF best = hn::Set(df, -kInfinity);
    for (int32_t key = range.first; key < range.end; key += kStride) {
      const size_t count = count_at(key, range.end);
      const VF part = Part::load(row_ + key, count);
      best = hn::Max(best, hn::IfThenElse(hn::FirstN(df, count), part, best));
    }
    return hn::ReduceMax(df, best);
  }

  // Without the hidden keys at either end.
  KeyRange trimmed(KeyRange range, float limit, VF& most_hidden) const {
    const D d;
    const VF limits = hn::Set(DF(), limit);
    const auto seen_of = [&](int32_t key, size_t count) HWY_ATTR {
      const auto part = Part::load(row_ + key, count);
      const auto some = hn::FirstN(d, count), hidden = Part::hidden(part, limits);
      if constexpr (Part::kFinite) {
        const VF lowest = hn::Set(DF(), -kInfinity);
        most_hidden = hn::Max(most_hidden, hn::IfThenElse(hn::And(some, hidden), part, lowest));
      }
      return hn::AndNot(hidden, some);
    };
    for (;; range.first += kStride) {
      if (range.empty()) {
        return KeyRange::none();
      }
      const auto seen = seen_of(range.first, count_at(range.first, range.end));
      if (!hn::AllFalse(d, seen)) {
        range.first += static_cast<int32_t>(hn::FindKnownFirstTrue(d, seen));
        break;
      }
    }
    for (;;) {
      const size_t count = count_at(range.first, range.end);
      const int32_t begin = range.end - static_cast<int32_t>(count);
      const auto seen = seen_of(begin, count);
      if (!hn::AllFalse(d, seen)) {
        range.end = begin + static_cast<int32_t>(hn::FindKnownLastTrue(d, seen)) + 1;
        return range;
      }
      range.end = begin;
    }
  }

  bool all_neutral(KeyRange range) const {
    const D d;
    for (int32_t key = range.first; key < range.end; key += kStride) {
      const size_t count = count_at(key, range.end);
      const auto neutral = Part::neutral(Part::load(row_ + key, count));
      if (!hn::AllFalse(d, hn::AndNot(neutral, hn::FirstN(d, count)))) {
        return false;
      }
    }
    return true;
  }

  static constexpr auto kStride = static_cast<int32_t>(HWY_MAX_LANES_D(D));
  static size_t count_at(int32_t key, int32_t end) {
    return static_cast<size_t>(HWY_MIN(kStride, end - key));
  }

  const M* row_;
};

// Keeps its memory from one call to the next.
class SightMaker {
 public:
  // Throws std::bad_alloc.
  Sights make(const AttentionArgs& args, const Parallel& parallel) {
    args_ = &args;
    const AttentionMask& mask = args.mask;
    const bool of_batch =
        mask.batch != 0 || args.nonpad_kv_seqlen != nullptr || args.key_ranges_batch != 0;
    const bool of_query = mask.query != 0 || args.causal || args.key_ranges != nullptr;
    const auto batches = static_cast<size_t>(of_batch ? args.batch : 1);
    heads_ = static_cast<size_t>(mask.head != 0 ? args.q_heads : 1);
    queries_ = static_cast<size_t>(of_query ? args.queries : 1);
    sights_.resize(batches * heads_ * queries_);
    hidden_if_bounded_ = 0;
    const size_t jobs = (sights_.size() + kRowsPerJob - 1) / kRowsPerJob;
    if (mask.data != nullptr && jobs > 1) {
      for_each(jobs, parallel, [this](size_t job) { look_at_rows(job); });
    } else {
      for (size_t job = 0; job < jobs; ++job) {
        look_at_rows(job);
      }
    }
    find_longest_keys(parallel);
    return {sights_.data(), of_batch ? static_cast<ptrdiff_t>(heads_ * queries_) : 0,
            mask.head != 0 ? static_cast<ptrdiff_t>(queries_) : 0, of_query ? 1 : 0,
            longest_keys_.data()};
  }

 private:
  static constexpr size_t kRowsPerJob = 64, kRowsBefore = 4;

  void look_at_rows(size_t job) {
    const size_t end = HWY_MIN(sights_.size(), (job + 1) * kRowsPerJob);
    int64_t hidden_if_bounded = 0;
    bool read_all = false;  // the row before, and so most likely the next ones
    for (size_t i = job * kRowsPerJob; i < end; ++i) {
      prefetch(HWY_MIN(i + kRowsBefore, end - 1), read_all);
      const auto batch = batch_of(i);
      const Row row = row_of(i);
      const KeyRange range = range_by_position(*args_, batch, row.query);
      const Sight& sight = sights_[i] = look(batch, row, range);
      read_all = !sight.masked;
      if (sight.bounded) {
        hidden_if_bounded += range.size() - sight.range.size();
      }
    }
    hidden_if_bounded_ += hidden_if_bounded;
  }

  int32_t batch_of(size_t i) const { return static_cast<int32_t>(i / (heads_ * queries_)); }
  Row row_of(size_t i) const {
    return {static_cast<int32_t>(i % queries_), static_cast<int32_t>(i / queries_ % heads_)};
  }
  ptrdiff_t mask_offset(int32_t batch, Row row) const {
    const AttentionMask& mask = args_->mask;
    return batch * mask.batch + row.head * mask.head + row.query * mask.query;
  }

  // Asks for a row of the mask: all of it, or no more than is read of a dense one.
  void prefetch(size_t i, bool all) const {
    const AttentionMask& mask = args_->mask;
    const KeyRange range = range_by_position(*args_, batch_of(i), row_of(i).query);
    if (mask.data == nullptr || mask.key == 0 || range.empty()) {
      return;
    }
    const ptrdiff_t size = mask.dtype == DType::kBool ? 1 : mask.dtype == DType::kFloat32 ? 4 : 2;
    const auto* begin = static_cast<const char*>(mask.data) +
                        (mask_offset(batch_of(i), row_of(i)) + range.first) * size;
    const ptrdiff_t bytes = range.size() * size;
    if (all) {
      prefetch_row(begin, static_cast<size_t>(bytes));
    } else {
      __builtin_prefetch(begin);
      __builtin_prefetch(begin + bytes - 1);
    }
  }

  Sight look(int32_t batch, Row row, KeyRange range) const {
    const AttentionMask& mask = args_->mask;
    if (mask.data == nullptr || range.empty()) {
      return {range, false, false, -kInfinity};
    }
    const ptrdiff_t offset = mask_offset(batch, row);
    if (mask.key == 0) {
      const float bias = hn::GetLane(row_bias(mask, offset, 0, 1));
      const KeyRange seen = bias == -kInfinity ? KeyRange::none() : range;
      return {seen, bias != 0.0f, false, -kInfinity};
    }
    const int32_t own = row.query + filled_keys(*args_, batch) - args_->queries;
    if (mask.dtype == DType::kBool) {
      return MaskRow<uint8_t>(static_cast<const uint8_t*>(mask.data) + offset).look(range, own);
    }
    Sight sight;
    with_type(mask.dtype, [&](auto type) {
      using M = decltype(type);
      sight = MaskRow<M>(static_cast<const M*>(mask.data) + offset).look(range, own);
    });
    return sight;
  }

  // Reads all keys, which is worth while if rows have so many fewer to read for it.
  void find_longest_keys(const Parallel& parallel) {
    const AttentionArgs& args = *args_;
    longest_keys_.assign(static_cast<size_t>(args.batch) * static_cast<size_t>(args.kv_heads),
                         kInfinity);
    if (hidden_if_bounded_ < int64_t{args.batch} * args.keys) {
      return;
    }
    for_each(longest_keys_.size(), parallel, [this](size_t i) { find_longest_key(i); });
  }

  void find_longest_key(size_t i) {
    const AttentionArgs& args = *args_;
    const auto batch = static_cast<int32_t>(i) / args.kv_heads;
    const auto kv_head = static_cast<int32_t>(i) % args.kv_heads;
    with_type(args.dtype, [&](auto type) HWY_ATTR {
      Longest longest;
      for (int64_t key = 0; key < filled_keys(args, batch); ++key) {
        longest.add(at<decltype(type)>(args.key, args.key_strides, batch, kv_head, key),
                    static_cast<size_t>(args.head_dim));
      }
      longest_keys_[i] = longest.norm();
    });
  }

  const AttentionArgs* args_ = nullptr;
  size_t heads_ = 1, queries_ = 1;
  std::vector<Sight> sights_;
  std::vector<float> longest_keys_;
  std::atomic<int64_t> hidden_if_bounded_{0};  // how many keys of rows
};

}  // namespace HWY_NAMESPACE
}  // namespace moh::cpu
HWY_AFTER_NAMESPACE();
#endif
