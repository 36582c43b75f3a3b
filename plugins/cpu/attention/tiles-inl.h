// A task with many rows: tiles of rows in lanes, blocks of keys, softmax block by block (online
// softmax, arXiv 1805.02867).
#if defined(MOH_CPU_ATTENTION_TILES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOH_CPU_ATTENTION_TILES_INL_H_
#undef MOH_CPU_ATTENTION_TILES_INL_H_
#else
#define MOH_CPU_ATTENTION_TILES_INL_H_
#endif

#include "cpu/attention/addressing.h"
#include "cpu/attention/mask-inl.h"
#include "cpu/attention/matrices-inl.h"
#include "cpu/attention/operands-inl.h"
#include "cpu/attention/products-inl.h"
#include "cpu/attention/sights-inl.h"
#include "cpu/attention/spans-inl.h"
#include "cpu/attention/tile_memory-inl.h"
#include "cpu/prefetch.h"
#include "cpu/scratch.h"

HWY_BEFORE_NAMESPACE();
namespace moh::cpu {
namespace HWY_NAMESPACE {

constexpr size_t kTilesPerTask = 32;

template <class Products, typename T>
class TileTask {
 public:
  TileTask(const TaskView& view, Scratch& scratch) : view_(view), scratch_(scratch) {}

  void run() {
    take_scratch();
    const size_t step = keys_per_block(static_cast<size_t>(view_.keys), Products::kMostKeys);
    const auto first_seen = view_.sight(view_.row_at(view_.task.rows[0])).range.first;
    const size_t likely = static_cast<size_t>(HWY_MIN(first_seen, view_.keys)) / step * step;
    prefetch_in_place(likely, HWY_MIN(likely + step, static_cast<size_t>(view_.keys)));
    pack_tiles();
    KeyRange seen = KeyRange::none();
    for (size_t t = 0; t < tile_count_; ++t) {
      for (size_t v = 0; v < tiles_[t].vectors; ++v) {
        seen = seen.joined(tiles_[t].seen[v]);
      }
    }
    [[maybe_unused]] const typename Products::Registers registers;
    const auto end = static_cast<size_t>(seen.end);
    for (size_t begin = static_cast<size_t>(seen.first) / step * step; begin < end; begin += step) {
      const Block<Products> block = read_block(begin, HWY_MIN(step, end - begin));
      const size_t next = begin + block.count, next_count = HWY_MIN(step, end - next);
      for (size_t t = 0; t < tile_count_; ++t) {
        prefetch_in_place(next + next_count * t / tile_count_,
                          next + next_count * (t + 1) / tile_count_);
        with_width(tiles_[t], block);
      }
    }
    for (size_t t = 0; t < tile_count_; ++t) {
      finish(tiles_[t]);
    }
  }

 private:
  using Operand = typename Products::Operand;

  const AttentionArgs& args() const { return view_.args; }

  void take_scratch() {
    const size_t block = keys_per_block(static_cast<size_t>(view_.keys), Products::kMostKeys);
    const auto head_dim = static_cast<size_t>(args().head_dim),
               value_dim = static_cast<size_t>(args().value_dim);
    const size_t vectors = (static_cast<size_t>(view_.task.row_count) + kLanes - 1) / kLanes;
    tile_count_ = (vectors + kMaxVectors - 1) / kMaxVectors;
    const TileSizes<Products> sizes(head_dim, value_dim, block);
    scratch_.reset(Scratch::bytes<Operand>(sizes.keys) + Scratch::bytes<Operand>(sizes.values) +
                   Scratch::bytes<float>(sizes.scores) + Scratch::bytes<float>(sizes.strip) +
                   tile_count_ * (Scratch::bytes<float>(sizes.queries) +
                                  Scratch::bytes<float>(sizes.outputs)));
    keys_ = scratch_.take<Operand>(sizes.keys);
    values_ = scratch_.take<Operand>(sizes.values);
    scores_ = scratch_.take<float>(sizes.scores);
    strip_ = scratch_.take<float>(sizes.strip);
    for (size_t t = 0; t < tile_count_; ++t) {
      tiles_[t].queries = scratch_.take<float>(sizes.queries);
      tiles_[t].outputs = scratch_.take<float>(sizes.outputs);
    }
  }

  // Divides the rows among tiles that are as wide as possible, and about equal.
  void pack_tiles() {
    const int32_t* places = view_.task.rows;
    size_t rows_left = static_cast<size_t>(view_.task.row_count);
    for (size_t t = 0; t < tile_count_; ++t) {
      Tile& tile = tiles_[t];
      const size_t vectors_left = (rows_left + kLanes - 1) / kLanes;
      tile.vectors = (vectors_left + tile_count_ - t - 1) / (tile_count_ - t);
      tile.row_count = HWY_MIN(tile.vectors * kLanes, rows_left);
      tile.places = places;
      tile.fresh = true;
      places += tile.row_count;
      rows_left -= tile.row_count;
      // The lanes behind the last row repeat it.
      for (size_t i = 0; i < tile.vectors * kLanes; ++i) {
        rows_[i] = view_.row_at(tile.places[HWY_MIN(i, tile.row_count - 1)]);
      }
      for (size_t v = 0; v < tile.vectors; ++v) {
        for_next_rows(tile, v, [this](Row row) {
          prefetch_row(view_.template query<T>(row), static_cast<size_t>(args().head_dim));
        });
        pack_vector(tile, v);
      }
      look(tile);
    }
  }

  // What the rows see, each vector and all of them.
  void look(Tile& tile) const {
    const size_t count = tile.vectors * kLanes;
    const bool has_mask = args().mask.data != nullptr;
    bool bounded = false;
    tile.masked = false;
    const auto keep = [&](size_t i, const Sight& sight) {
      tile.ranges[i] = sight.range;
      if (has_mask) {
        bounded = bounded || sight.bounded;
        tile.masked = tile.masked || sight.masked;
        tile.mask_rows[i] = view_.mask_offset(rows_[i]);
        tile.least[i] = sight.least;
      }
    };
    for (size_t i = 0; i < count; ++i) {
      keep(i, view_.sight(rows_[i]));
    }
    if (bounded && !scores_are_bounded(count)) {
      for (size_t i = 0; i < count; ++i) {
        keep(i, view_.unbounded_sight(rows_[i]));
      }
    }
    const DI di;
    auto last_first = hn::Zero(di), first_end = hn::Set(di, view_.keys);
    for (size_t v = 0; v < tile.vectors; ++v) {
      const VectorRanges ranges(tile, v);
      tile.seen[v] = {hn::ReduceMin(di, ranges.first), hn::ReduceMax(di, ranges.end)};
      last_first = hn::Max(last_first, ranges.first);
      first_end = hn::Min(first_end, ranges.end);
    }
    tile.shared = {hn::ReduceMax(di, last_first), hn::ReduceMin(di, first_end)};
  }

  // Whether finite biases hide what they hide, given the queries of the first `count` of `rows_`
  // and all keys.
  bool scores_are_bounded(size_t count) const {
    const auto head = static_cast<ptrdiff_t>(view_.task.batch) * args().kv_heads;
    const float keys = view_.sights.longest_keys[head + view_.task.kv_head];
    if (!(keys < kInfinity)) {
      return false;
    }
    Longest queries;
    for (size_t i = 0; i < count; ++i) {
      queries.add(view_.template query<T>(rows_[i]), static_cast<size_t>(args().head_dim));
    }
    return far_is_enough(queries.norm() * std::fabs(args().scale) * kLog2E, keys);
  }

  // Calls visit(row) for each row of the vector behind vector v, which may be of the next tile.
  template <class Visit>
  void for_next_rows(const Tile& tile, size_t v, const Visit& visit) const {
    const int32_t* const end = view_.task.rows + view_.task.row_count;
    const int32_t* next = tile.places + (v + 1) * kLanes;
    for (size_t lane = 0; lane < kLanes && next < end; ++lane, ++next) {
      visit(view_.row_at(*next));
    }
  }

  // Keys and values that are not copied are first read in the products, eight rows at once.
  void prefetch_in_place(size_t begin, size_t end) const {
    if constexpr (std::is_same<T, Operand>::value) {
      for (auto key = static_cast<int64_t>(begin); key < static_cast<int64_t>(end); ++key) {
        prefetch_row(view_.template key<T>(key), static_cast<size_t>(args().head_dim));
        prefetch_row(view_.template value<T>(key), static_cast<size_t>(args().value_dim));
      }
    }
  }

  void pack_vector(Tile& tile, size_t v) {
    const T* queries[kLanes];
    for (size_t lane = 0; lane < kLanes; ++lane) {
      queries[lane] = view_.template query<T>(rows_[v * kLanes + lane]);
    }
    pack_rows<Products>(queries, static_cast<size_t>(args().head_dim), args().scale * kLog2E,
                        tile.vectors, tile.queries + v * kLanes);
    if constexpr (Products::kInMatrices) {
      const auto head_dim = static_cast<size_t>(args().head_dim);
      for (size_t pair = round_up(head_dim, kLanes) / 2; pair < matrix_operands(head_dim); ++pair) {
        hn::Store(hn::Zero(DF()), DF(), tile.queries + (pair * tile.vectors + v) * kLanes);
      }
    }
    tile.largest[v] = hn::Set(DF(), kLowest);
    tile.sum[v] = hn::Zero(DF());
  }

  Block<Products> read_block(size_t begin, size_t count) {
    const auto key = static_cast<int64_t>(begin);
    const auto head_dim = static_cast<size_t>(args().head_dim),
               value_dim = static_cast<size_t>(args().value_dim);
    const BlockKeys block{begin, count, scores_};
    if constexpr (Products::kInMatrices) {
      const size_t room = keys_per_block(static_cast<size_t>(view_.keys), Products::kMostKeys);
      return {
          block,
          matrix_keys(view_.template key<T>(key), args().key_strides.token, count, head_dim, keys_),
          matrix_values<Products>(view_.template value<T>(key), args().value_strides.token, count,
                                  value_dim, value_row_operands(room), values_)};
    } else {
      return {block,
              key_operands<Products>(view_.template key<T>(key), args().key_strides.token, count,
                                     head_dim, keys_),
              value_operands<Products>(view_.template value<T>(key), args().value_strides.token,
                                       count, value_dim, values_)};
    }
  }

  void with_width(Tile& tile, const Block<Products>& block) {
    switch (tile.vectors) {
      case 1:
        return attend<1>(tile, block);
      case 2:
        return attend<2>(tile, block);
      default:
        return attend<kMaxVectors>(tile, block);
    }
  }

  template <size_t kWidth>
  void attend(Tile& tile, const Block<Products>& block) {
    KeySpan keys = seen_keys<kWidth>(tile, block);
    bool biased = false;
    if (tile.masked && keys.begin < keys.end) {
      keys = apply_mask<kWidth>(args().mask, tile, block, keys, biased);
    }
    if (keys.begin >= keys.end) {
      return;
    }
    const Spans<kWidth> spans = spans_within<kWidth>(tile, block, keys);
    KeySpan plain = keys_of_all(tile, block, keys);  // without biases
    hide_unseen<kWidth>(tile, block, {keys.begin, plain.begin}, biased);
    hide_unseen<kWidth>(tile, block, {plain.end, keys.end}, biased);
    if (biased) {
      plain = {keys.end, keys.end};
    }

    VF largest[kWidth], decay[kWidth], sum[kWidth];
    for (size_t v = 0; v < kWidth; ++v) {
      largest[v] = tile.largest[v];
    }
    spans.for_each([&](auto first, auto count, size_t begin, size_t end) HWY_ATTR {
      score<kWidth, first, count, true>(tile, block, {begin, HWY_MIN(end, plain.begin)}, largest);
      score<kWidth, first, count, false>(
          tile, block, {HWY_MAX(begin, plain.begin), HWY_MIN(end, plain.end)}, largest);
      score<kWidth, first, count, true>(tile, block, {HWY_MAX(begin, plain.end), end}, largest);
    });
    for (size_t v = 0; v < kWidth; ++v) {
      decay[v] = exp2(hn::Sub(tile.largest[v], largest[v]));
      sum[v] = hn::Mul(tile.sum[v], decay[v]);
    }
    spans.for_each([&](auto first, auto count, size_t begin, size_t end) HWY_ATTR {
      exponentiate_range<Products, kWidth, count>(begin, end, block.scores + first * kLanes,
                                                  largest + first, sum + first);
    });
    for (size_t v = 0; v < kWidth; ++v) {
      tile.largest[v] = largest[v];
      tile.sum[v] = sum[v];
    }
    weigh<kWidth>(tile, block, spans, decay);
    tile.fresh = false;
  }

  template <size_t kWidth, size_t kFirst, size_t kCount, bool kAdd>
  void score(const Tile& tile, const Block<Products>& block, KeySpan keys, VF (&largest)[kWidth]) {
    if (keys.begin >= keys.end) {
      return;
    }
    const auto head_dim = static_cast<size_t>(args().head_dim);
    const float* queries = tile.queries + kFirst * kLanes;
    float* scores = block.scores + kFirst * kLanes;
    if constexpr (Products::kInMatrices) {
      score_in_matrices<typename Products::Registers, kWidth, kCount, kAdd>(
          block.keys, queries, matrix_operands(head_dim), keys.begin, keys.end, scores, strip_,
          largest + kFirst);
    } else {
      score_range<Products, kWidth, kCount, kAdd>(block.keys, queries,
                                                  row_operands<Products>(head_dim), keys.begin,
                                                  keys.end, scores, largest + kFirst);
    }
  }

  template <size_t kWidth>
  void weigh(Tile& tile, const Block<Products>& block, const Spans<kWidth>& spans,
             const VF (&decay)[kWidth]) {
    const auto value_dim = static_cast<size_t>(args().value_dim);
    if constexpr (Products::kInMatrices) {
      return weigh_in_matrices<typename Products::Registers, kWidth>(
          block.values, block.scores, spans, decay, tile.fresh, value_dim, tile.outputs);
    } else {
      size_t d = 0;
      const auto step = [&](auto features_at_once) HWY_ATTR {
        constexpr size_t kFeatures = decltype(features_at_once)::value;
        for (; d + kFeatures <= value_dim; d += kFeatures) {
          const OperandRows<Operand> values{block.values.data + d, block.values.stride};
          weigh_features<Products, kFeatures, kWidth>(
              values, block.scores, spans, decay, tile.fresh, tile.outputs + d * kWidth * kLanes);
        }
      };
      step(std::integral_constant<size_t, kStep>());
      step(std::integral_constant<size_t, kStep / 2>());
      step(std::integral_constant<size_t, 1>());
    }
  }

  void finish(const Tile& tile) {
    const DF df;
    for (size_t v = 0; v < tile.vectors; ++v) {
      T* outputs[kLanes];
      HWY_ALIGN float gates[kLanes];
      const size_t count = HWY_MIN(kLanes, tile.row_count - v * kLanes);
      for_next_rows(tile, v, [this](Row row) {
        prefetch_row<Access::kWrite>(view_.template output<T>(row),
                                     static_cast<size_t>(args().value_dim));
      });
      for (size_t lane = 0; lane < kLanes; ++lane) {
        const Row row = view_.row_at(tile.places[HWY_MIN(v * kLanes + lane, tile.row_count - 1)]);
        outputs[lane] = view_.template output<T>(row);
        gates[lane] = scalar_of(view_.template gate<T>(row));
      }
      const VF gate = hn::Load(df, gates);
      const VF factor = hn::IfThenElse(blind_rows(tile, v), hn::Mul(gate, hn::Zero(df)),
                                       hn::Div(gate, tile.sum[v]));
      if (tile.fresh) {
        clear_outputs(tile, v);
      }
      unpack_rows(tile.outputs + v * kLanes, tile.vectors, factor,
                  static_cast<size_t>(args().value_dim), count, outputs);
    }
  }

  // The lanes whose row sees no key: their attention is 0.
  static hn::Mask<DF> blind_rows(const Tile& tile, size_t v) {
    const VectorRanges ranges(tile, v);
    return hn::RebindMask(DF(), hn::Ge(ranges.first, ranges.end));
  }

  void clear_outputs(const Tile& tile, size_t v) {
    for (size_t d = 0; d < static_cast<size_t>(args().value_dim); ++d) {
      hn::Store(hn::Zero(DF()), DF(), tile.outputs + (d * tile.vectors + v) * kLanes);
    }
  }

  const TaskView& view_;
  Scratch& scratch_;
  Operand* keys_;
  Operand* values_;
  float* scores_;
  float* strip_;
  size_t tile_count_;
  Tile tiles_[kTilesPerTask];
  Row rows_[kMaxVectors * kLanes];  // of the tile that is packed
};

}  // namespace HWY_NAMESPACE
}  // namespace moh::cpu
HWY_AFTER_NAMESPACE();
#endif
