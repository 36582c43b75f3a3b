// A task with few rows, such as decoding: features in lanes, so that a single row fills a vector.
// Each row of keys and values is read once, where it is, for all rows of the task.
#if defined(MOH_CPU_ATTENTION_FEW_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOH_CPU_ATTENTION_FEW_ROWS_INL_H_
#undef MOH_CPU_ATTENTION_FEW_ROWS_INL_H_
#else
#define MOH_CPU_ATTENTION_FEW_ROWS_INL_H_
#endif

#include "cpu/attention/addressing.h"
#include "cpu/attention/mask-inl.h"
#include "cpu/attention/operands-inl.h"
#include "cpu/scratch.h"
#include "hwy/cache_control.h"

HWY_BEFORE_NAMESPACE();
namespace moh::cpu {
namespace HWY_NAMESPACE {

// Above this many rows, rows in lanes are faster, although lanes are empty then.
constexpr size_t kFewRows = kLanes / 2;
// Rows that a key or value in registers is used for.
constexpr size_t kRowsAtOnce = HWY_MIN(kFewRows, size_t{4});

// As many features as there are registers for their sums: each value is then read once, in the
// order of memory.
template <size_t kRows>
constexpr size_t kFeatureVectorsAtOnce = (kManyRegisters ? 16 : 8) / (kRows <= 2 ? 2 : 4);

template <typename T>
struct TensorRows {
  const T* data;
  ptrdiff_t stride;
  HWY_INLINE const T* at(size_t row) const { return data + static_cast<ptrdiff_t>(row) * stride; }
  // Rows that lie apart are not foreseen by the processor; it does better alone where they are
  // adjacent.
  HWY_INLINE void prefetch_after(size_t row, size_t size) const {
    if (stride == static_cast<ptrdiff_t>(size)) {
      return;
    }
    constexpr size_t kRowsAhead = 4;
    for (size_t d = 0; d < size; d += kCacheLine / sizeof(T)) {
      hwy::Prefetch(at(row + kRowsAhead) + d);
    }
  }
};

// scores[row][key] = keys . queries; queries [row][feature] are padded with zeros to whole vectors.
template <typename T, size_t kRows>
HWY_NOINLINE void dot_keys(TensorRows<T> keys, size_t count, size_t size,
                           const float* HWY_RESTRICT queries, size_t query_stride,
                           float* HWY_RESTRICT scores, size_t score_stride) {
  const DF df;
  for (size_t key = 0; key < count; ++key) {
    keys.prefetch_after(key, size);
    VF sums[kRows];
#pragma GCC unroll 4
    for (size_t row = 0; row < kRows; ++row) {
      sums[row] = hn::Zero(df);
    }
    for (size_t d = 0; d < size; d += kLanes) {
      const VF part = load_part(keys.at(key), d, size);
#pragma GCC unroll 4
      for (size_t row = 0; row < kRows; ++row) {
        sums[row] = hn::MulAdd(part, hn::Load(df, queries + row * query_stride + d), sums[row]);
      }
    }
#pragma GCC unroll 4
    for (size_t row = 0; row < kRows; ++row) {
      scores[row * score_stride + key] = hn::ReduceSum(df, sums[row]);
    }
  }
}

// outputs[row][feature] = outputs * decay + values . weights, for kVectors vectors of features from
// `d` on.
template <typename T, size_t kRows, size_t kVectors>
HWY_NOINLINE void add_values(TensorRows<T> values, size_t count, size_t d, size_t size,
                             const float* HWY_RESTRICT weights, size_t weight_stride,
                             const float* decay, float* HWY_RESTRICT outputs,
                             size_t output_stride) {
  const DF df;
  VF sums[kRows][kVectors];
#pragma GCC unroll 4
  for (size_t row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
    for (size_t v = 0; v < kVectors; ++v) {
      sums[row][v] = hn::Mul(hn::Load(df, outputs + row * output_stride + d + v * kLanes),
                             hn::Set(df, decay[row]));
    }
  }
  for (size_t key = 0; key < count; ++key) {
    if (d == 0) {
      values.prefetch_after(key, size);
    }
    VF part[kVectors];
#pragma GCC unroll 8
    for (size_t v = 0; v < kVectors; ++v) {
      part[v] = load_part(values.at(key), d + v * kLanes, size);
    }
#pragma GCC unroll 4
    for (size_t row = 0; row < kRows; ++row) {
      const VF weight = hn::Set(df, weights[row * weight_stride + key]);
#pragma GCC unroll 8
      for (size_t v = 0; v < kVectors; ++v) {
        sums[row][v] = hn::MulAdd(part[v], weight, sums[row][v]);
      }
    }
  }
#pragma GCC unroll 4
  for (size_t row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
    for (size_t v = 0; v < kVectors; ++v) {
      hn::Store(sums[row][v], df, outputs + row * output_stride + d + v * kLanes);
    }
  }
}

template <typename T>
class FewRowsTask {
 public:
  FewRowsTask(const TaskView& view, Scratch& scratch) : view_(view), scratch_(scratch) {}

  void run() {
    take_scratch();
    for (size_t row = 0; row < row_count_; ++row) {
      pack_query(row);
    }
    KeyRange seen = KeyRange::none();
    for (size_t row = 0; row < row_count_; ++row) {
      seen = seen.joined(sights_[row].range);
    }
    // Blocks end where they always do, and begin with a whole vector: which sums a score becomes
    // part of depends on no mask.
    const auto end = static_cast<size_t>(seen.end);
    size_t begin = static_cast<size_t>(seen.first) / kLanes * kLanes;
    for (size_t next; begin < end; begin = next) {
      next = HWY_MIN(end, (begin / block_ + 1) * block_);
      if (seen_by_any(begin, next)) {
        for (size_t row = 0; row < row_count_; row += kRowsAtOnce) {
          with_rows(row, begin, next - begin);
        }
      }
    }
    for (size_t row = 0; row < row_count_; ++row) {
      finish(row);
    }
  }

 private:
  const AttentionArgs& args() const { return view_.args; }

  // False if the mask hides all keys [begin, end), such as the room between a prompt and what
  // follows it in a cache.
  bool seen_by_any(size_t begin, size_t end) const {
    for (size_t row = 0; row < row_count_; ++row) {
      if (!sights_[row].masked ||
          mask_shows(args().mask, view_.mask_offset(rows_[row]), begin, end, sights_[row].least)) {
        return true;
      }
    }
    return false;
  }

  void take_scratch() {
    row_count_ = static_cast<size_t>(view_.task.row_count);
    block_ = round_up(keys_per_block(static_cast<size_t>(view_.keys), Float32Products::kMostKeys),
                      kLanes);
    query_stride_ = round_up(static_cast<size_t>(args().head_dim), kLanes);
    output_stride_ = round_up(static_cast<size_t>(args().value_dim), kLanes);
    scratch_.reset(Scratch::bytes<float>(row_count_ * query_stride_) +
                   Scratch::bytes<float>(row_count_ * output_stride_) +
                   Scratch::bytes<float>(row_count_ * block_));
    queries_ = scratch_.take<float>(row_count_ * query_stride_);
    outputs_ = scratch_.take<float>(row_count_ * output_stride_);
    scores_ = scratch_.take<float>(row_count_ * block_);
  }

  void pack_query(size_t row) {
    const DF df;
    rows_[row] = view_.row_at(view_.task.rows[row]);
    sights_[row] = view_.unbounded_sight(rows_[row]);
    const T* from = view_.template query<T>(rows_[row]);
    const VF factor = hn::Set(df, args().scale * kLog2E);
    const auto size = static_cast<size_t>(args().head_dim);
    for (size_t d = 0; d < size; d += kLanes) {
      hn::Store(hn::Mul(load_part(from, d, size), factor), df, queries_ + row * query_stride_ + d);
    }
    for (size_t d = 0; d < output_stride_; d += kLanes) {
      hn::Store(hn::Zero(df), df, outputs_ + row * output_stride_ + d);
    }
    largest_[row] = kLowest;
    sum_[row] = 0.0f;
  }

  void with_rows(size_t row, size_t begin, size_t count) {
    switch (row_count_ - row) {
      case 1:
        return attend<1>(row, begin, count);
      case 2:
        return attend<2>(row, begin, count);
      case 3:  // with rows two at a time there is no such rest
        return attend<HWY_MIN(kRowsAtOnce, size_t{3})>(row, begin, count);
      default:
        return attend<kRowsAtOnce>(row, begin, count);
    }
  }

  // Rows [first, first + kRows) and keys [begin, begin + count).
  template <size_t kRows>
  void attend(size_t first, size_t begin, size_t count) {
    const auto key = static_cast<int64_t>(begin);
    const TensorRows<T> keys{view_.template key<T>(key), args().key_strides.token};
    const TensorRows<T> values{view_.template value<T>(key), args().value_strides.token};
    dot_keys<T, kRows>(keys, count, static_cast<size_t>(args().head_dim),
                       queries_ + first * query_stride_, query_stride_, scores_ + first * block_,
                       block_);
    float decay[kRows];
    for (size_t row = 0; row < kRows; ++row) {
      decay[row] = exponentiate(first + row, begin, count);
    }
    weigh<kRows>(first, values, count, decay);
  }

  // Scores of a row -> weights 2^(score - largest). Returns what the outputs so far have to be
  // multiplied by.
  float exponentiate(size_t row, size_t begin, size_t count) {
    const DF df;
    float* const scores = scores_ + row * block_;
    VF largest = hn::Set(df, largest_[row]);
    for (size_t key = 0; key < count; key += kLanes) {
      const VF score =
          biased(hn::Load(df, scores + key), row, begin + key, HWY_MIN(kLanes, count - key));
      largest = hn::Max(largest, score);
      hn::Store(score, df, scores + key);
    }
    largest = hn::MaxOfLanes(df, largest);
    VF sums = hn::Zero(df);
    for (size_t key = 0; key < count; key += kLanes) {
      const VF weight = exp2(hn::Sub(hn::Load(df, scores + key), largest));
      sums = hn::Add(sums, weight);
      hn::Store(weight, df, scores + key);
    }
    const float decay = hn::GetLane(exp2(hn::Sub(hn::Set(df, largest_[row]), largest)));
    largest_[row] = hn::GetLane(largest);
    sum_[row] = sum_[row] * decay + hn::ReduceSum(df, sums);
    return decay;
  }

  // Adds the mask, and hides the lanes from `count` on and the keys that the row does not see.
  VF biased(VF score, size_t row, size_t key, size_t count) const {
    const DF df;
    const Sight& sight = sights_[row];
    if (sight.masked) {
      score = add_bias(score, row_bias(args().mask, view_.mask_offset(rows_[row]), key, count));
    }
    const auto lanes_before = [&](int32_t limit) {
      return hn::FirstN(df, limit <= static_cast<int64_t>(key)
                                ? 0
                                : HWY_MIN(count, static_cast<size_t>(limit) - key));
    };
    const auto seen = hn::AndNot(lanes_before(sight.range.first), lanes_before(sight.range.end));
    return hn::IfThenElse(seen, score, hn::Set(df, -kInfinity));
  }

  template <size_t kRows>
  void weigh(size_t first, TensorRows<T> values, size_t count, const float* decay) {
    const auto size = static_cast<size_t>(args().value_dim);
    const float* weights = scores_ + first * block_;
    float* outputs = outputs_ + first * output_stride_;
    constexpr size_t kVectors = kFeatureVectorsAtOnce<kRows>;
    size_t d = 0;
    for (; d + kVectors * kLanes <= size; d += kVectors * kLanes) {
      add_values<T, kRows, kVectors>(values, count, d, size, weights, block_, decay, outputs,
                                     output_stride_);
    }
    for (; d < size; d += kLanes) {
      add_values<T, kRows, 1>(values, count, d, size, weights, block_, decay, outputs,
                              output_stride_);
    }
  }

  void finish(size_t row) {
    const float gate = scalar_of(view_.template gate<T>(rows_[row]));
    const bool blind = sights_[row].range.empty();
    const VF factor = hn::Set(DF(), blind ? gate * 0.0f : gate / sum_[row]);
    const auto size = static_cast<size_t>(args().value_dim);
    T* to = view_.template output<T>(rows_[row]);
    for (size_t d = 0; d < size; d += kLanes) {
      store_part(hn::Mul(hn::Load(DF(), outputs_ + row * output_stride_ + d), factor), to, d, size);
    }
  }

  const TaskView& view_;
  Scratch& scratch_;
  size_t row_count_, block_, query_stride_, output_stride_;
  float* queries_;  // [row][feature], times scale * log2(e)
  float* outputs_;  // [row][feature], to be divided by `sum_`
  float* scores_;   // [row][key of the block]
  Row rows_[kFewRows];
  Sight sights_[kFewRows];
  float largest_[kFewRows], sum_[kFewRows];
};

}  // namespace HWY_NAMESPACE
}  // namespace moh::cpu
HWY_AFTER_NAMESPACE();
#endif
