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
  TileTask(const AttentionArgs& args, const Task& task, Scratch& scratch)
      : view_{args, task}, scratch_(scratch) {}

  void run() {
    take_scratch();
    const auto last_row = view_.row_at(view_.task.rows[view_.task.row_count - 1]);
    const auto keys = static_cast<size_t>(view_.visible_keys(last_row));
    const size_t step = keys_per_block(static_cast<size_t>(view_.keys), Products::kMostKeys);
    prefetch_in_place(0, HWY_MIN(step, keys));
    pack_tiles();
    [[maybe_unused]] const typename Products::Registers registers;
    for (size_t begin = 0; begin < keys; begin += step) {
      const Block<Products> block = read_block(begin, HWY_MIN(step, keys - begin));
      const size_t next = begin + block.count, next_count = HWY_MIN(step, keys - next);
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
      for (size_t v = 0; v < tile.vectors; ++v) {
        for_next_rows(tile, v, [this](Row row) {
          prefetch_row(view_.template query<T>(row), static_cast<size_t>(args().head_dim));
        });
        pack_vector(tile, v);
      }
    }
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
      const Row row = view_.row_at(tile.places[HWY_MIN(v * kLanes + lane, tile.row_count - 1)]);
      queries[lane] = view_.template query<T>(row);
      tile.visible[v][lane] = view_.visible_keys(row);
      tile.mask_rows[v * kLanes + lane] = view_.mask_offset(row);
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
    if constexpr (Products::kInMatrices) {
      const size_t block = keys_per_block(static_cast<size_t>(view_.keys), Products::kMostKeys);
      return {
          matrix_keys(view_.template key<T>(key), args().key_strides.token, count, head_dim, keys_),
          matrix_values<Products>(view_.template value<T>(key), args().value_strides.token, count,
                                  value_dim, value_row_operands(block), values_),
          begin, count, scores_};
    } else {
      return {key_operands<Products>(view_.template key<T>(key), args().key_strides.token, count,
                                     head_dim, keys_),
              value_operands<Products>(view_.template value<T>(key), args().value_strides.token,
                                       count, value_dim, values_),
              begin, count, scores_};
    }
  }

  void with_width(Tile& tile, const Block<Products>& block) {
    switch (tile.vectors) {
      case 1:
        return mask<1>(tile, block);
      case 2:
        return mask<2>(tile, block);
      default:
        return mask<kMaxVectors>(tile, block);
    }
  }

  // Leaves out what the mask hides from every row of the tile.
  template <size_t kWidth>
  void mask(Tile& tile, Block<Products> block) {
    if (tile.most_visible(kWidth - 1) <= static_cast<int64_t>(block.begin)) {
      return;
    }
    if (args().mask.data == nullptr) {
      return attend<kWidth>(tile, block, false);
    }
    const MaskEffect effect =
        write_biases<kWidth>(args().mask, tile.mask_rows, block.begin, block.count, block.scores);
    if (effect.last_seen == 0) {
      return;
    }
    block.count = effect.last_seen;
    block.skip(effect.first_seen, kWidth);
    attend<kWidth>(tile, block, !effect.neutral);
  }

  template <size_t kWidth>
  void attend(Tile& tile, const Block<Products>& block, bool biased) {
    size_t ends[kWidth];  // of the keys that vector v looks at
    for (size_t v = 0; v < kWidth; ++v) {
      ends[v] = keys_to_compute(tile.most_visible(v), block);
    }
    if (ends[kWidth - 1] == 0) {
      return;
    }
    const size_t plain = biased ? 0 : HWY_MIN(ends[0], seen_by_all(tile, block));
    if (args().causal) {
      hide_later_keys<kWidth>(tile, block, plain, ends[kWidth - 1], biased);
    }

    VF largest[kWidth], decay[kWidth], sum[kWidth];
    for (size_t v = 0; v < kWidth; ++v) {
      largest[v] = tile.largest[v];
    }
    score<kWidth, 0, false>(tile, block, 0, plain, largest);
    score<kWidth, 0, true>(tile, block, plain, ends[0], largest);
    if constexpr (kWidth > 1) {
      score<kWidth, 1, true>(tile, block, ends[0], ends[1], largest);
    }
    if constexpr (kWidth > 2) {
      score<kWidth, 2, true>(tile, block, ends[1], ends[2], largest);
    }

    for (size_t v = 0; v < kWidth; ++v) {
      decay[v] = exp2(hn::Sub(tile.largest[v], largest[v]));
      sum[v] = hn::Mul(tile.sum[v], decay[v]);
    }
    exponentiate_range<Products, kWidth, 0>(0, ends[0], block.scores, largest, sum);
    if constexpr (kWidth > 1) {
      exponentiate_range<Products, kWidth, 1>(ends[0], ends[1], block.scores, largest, sum);
    }
    if constexpr (kWidth > 2) {
      exponentiate_range<Products, kWidth, 2>(ends[1], ends[2], block.scores, largest, sum);
    }
    for (size_t v = 0; v < kWidth; ++v) {
      tile.largest[v] = largest[v];
      tile.sum[v] = sum[v];
    }
    weigh<kWidth>(tile, block, ends, decay);
    tile.fresh = false;
  }

  // Up to the last key that a row of the vector sees, in whole steps where the block has them.
  static size_t keys_to_compute(int32_t visible, const Block<Products>& block) {
    if (visible <= static_cast<int64_t>(block.begin)) {
      return 0;
    }
    return HWY_MIN(block.count, round_up(static_cast<size_t>(visible) - block.begin, kStep));
  }

  // Up to the first key that a row of the tile does not see, in whole steps.
  static size_t seen_by_all(const Tile& tile, const Block<Products>& block) {
    if (tile.fewest_visible() <= static_cast<int64_t>(block.begin)) {
      return 0;
    }
    const size_t seen = static_cast<size_t>(tile.fewest_visible()) - block.begin;
    return seen >= block.count ? block.count : seen / kStep * kStep;
  }

  // Biases of keys [begin, end): -inf in the lanes that do not see the key; else what is there if
  // `biased`, else 0.
  template <size_t kWidth>
  static void hide_later_keys(const Tile& tile, const Block<Products>& block, size_t begin,
                              size_t end, bool biased) {
    const DF df;
    const hn::RebindToSigned<DF> di;
    for (size_t key = begin; key < end; ++key) {
      const auto position = hn::Set(di, static_cast<int32_t>(block.begin + key));
      for (size_t v = 0; v < kWidth; ++v) {
        float* bias = block.scores + (key * kWidth + v) * kLanes;
        const auto hidden = hn::RebindMask(df, hn::Ge(position, hn::LoadU(di, tile.visible[v])));
        hn::Store(hn::IfThenElse(hidden, hn::Set(df, -kInfinity),
                                 biased ? hn::Load(df, bias) : hn::Zero(df)),
                  df, bias);
      }
    }
  }

  template <size_t kWidth, size_t kFirst, bool kAdd>
  void score(const Tile& tile, const Block<Products>& block, size_t begin, size_t end,
             VF (&largest)[kWidth]) {
    const auto head_dim = static_cast<size_t>(args().head_dim);
    if constexpr (Products::kInMatrices) {
      score_in_matrices<typename Products::Registers, kWidth, kFirst, kAdd>(
          block.keys, tile.queries, matrix_operands(head_dim), begin, end, block.scores, strip_,
          largest);
    } else {
      score_range<Products, kWidth, kFirst, kAdd>(block.keys, tile.queries,
                                                  row_operands<Products>(head_dim), begin, end,
                                                  block.scores, largest);
    }
  }

  template <size_t kWidth>
  void weigh(Tile& tile, const Block<Products>& block, const size_t (&ends)[kWidth],
             const VF (&decay)[kWidth]) {
    const auto value_dim = static_cast<size_t>(args().value_dim);
    if constexpr (Products::kInMatrices) {
      return weigh_in_matrices<typename Products::Registers, kWidth>(
          block.values, block.scores, ends, decay, tile.fresh, value_dim, tile.outputs);
    } else {
      size_t d = 0;
      const auto step = [&](auto features_at_once) HWY_ATTR {
        constexpr size_t kFeatures = decltype(features_at_once)::value;
        for (; d + kFeatures <= value_dim; d += kFeatures) {
          const OperandRows<Operand> values{block.values.data + d, block.values.stride};
          weigh_features<Products, kFeatures, kWidth>(values, block.scores, ends, decay, tile.fresh,
                                                      tile.outputs + d * kWidth * kLanes);
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

  // The lanes whose row sees no key: their attention is 0. Where a row sees keys, its sum is at
  // least 1, or its scores are all -inf and it becomes NaN.
  hn::Mask<DF> blind_rows(const Tile& tile, size_t v) const {
    const DF df;
    const auto without_weight = hn::Eq(tile.sum[v], hn::Zero(df));
    if (hn::AllFalse(df, without_weight)) {
      return without_weight;
    }
    HWY_ALIGN float blind[kLanes];
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const size_t row = HWY_MIN(v * kLanes + lane, tile.row_count - 1);
      blind[lane] = sees_no_key(view_, view_.row_at(tile.places[row])) ? 1.0f : 0.0f;
    }
    return hn::And(without_weight, hn::Ne(hn::Load(df, blind), hn::Zero(df)));
  }

  void clear_outputs(const Tile& tile, size_t v) {
    for (size_t d = 0; d < static_cast<size_t>(args().value_dim); ++d) {
      hn::Store(hn::Zero(DF()), DF(), tile.outputs + (d * tile.vectors + v) * kLanes);
    }
  }

  TaskView view_;
  Scratch& scratch_;
  Operand* keys_;
  Operand* values_;
  float* scores_;
  float* strip_;
  size_t tile_count_;
  Tile tiles_[kTilesPerTask];
};

}  // namespace HWY_NAMESPACE
}  // namespace moh::cpu
HWY_AFTER_NAMESPACE();
#endif
