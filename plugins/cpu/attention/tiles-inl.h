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
#include "cpu/attention/operands-inl.h"
#include "cpu/attention/products-inl.h"
#include "cpu/scratch.h"

HWY_BEFORE_NAMESPACE();
namespace moh::cpu {
namespace HWY_NAMESPACE {

constexpr size_t kTilesPerTask = 32;
// Up to kMaxVectors vectors of rows; the lanes behind the last row repeat it.
struct Tile {
  size_t vectors, row_count;
  const int32_t* places;
  float* queries;  // [head_dim / depth][vector][lane], times scale * log2(e)
  float* outputs;  // [value_dim][vector][lane], to be divided by `sum`
  bool fresh;      // nothing is in `outputs` yet
  VF largest[kMaxVectors];
  VF sum[kMaxVectors];
  int32_t visible[kMaxVectors][kLanes];       // keys that the row sees
  ptrdiff_t mask_rows[kMaxVectors * kLanes];  // where the row begins in attn_mask

  int32_t FewestVisible() const { return visible[0][0]; }
  int32_t MostVisible(size_t v) const { return visible[v][kLanes - 1]; }
};

// Keys and values of one block, and room for the scores of one tile with them.
template <class Products>
struct Block {
  OperandRows<typename Products::Operand> keys, values;
  size_t begin, count;
  float* scores;  // [key][vector][lane]
};

template <class Products, typename T>
class TileTask {
 public:
  TileTask(const AttentionArgs& args, const Task& task, Scratch& scratch)
      : view_{args, task}, scratch_(scratch) {}

  void Run() {
    TakeScratch();
    PackTiles();
    const auto last_row = view_.RowAt(view_.task.rows[view_.task.row_count - 1]);
    const auto keys = static_cast<size_t>(view_.VisibleKeys(last_row));
    const size_t step = KeysPerBlock(static_cast<size_t>(args().keys));
    for (size_t begin = 0; begin < keys; begin += step) {
      const Block<Products> block = ReadBlock(begin, HWY_MIN(step, keys - begin));
      for (size_t t = 0; t < tile_count_; ++t) {
        WithWidth(tiles_[t], block);
      }
    }
    for (size_t t = 0; t < tile_count_; ++t) {
      Finish(tiles_[t]);
    }
  }

 private:
  using Operand = typename Products::Operand;

  const AttentionArgs& args() const { return view_.args; }

  void TakeScratch() {
    const size_t block = KeysPerBlock(static_cast<size_t>(args().keys));
    const auto head_dim = static_cast<size_t>(args().head_dim),
               value_dim = static_cast<size_t>(args().value_dim);
    const size_t vectors = (static_cast<size_t>(view_.task.row_count) + kLanes - 1) / kLanes;
    tile_count_ = (vectors + kMaxVectors - 1) / kMaxVectors;
    const size_t keys = block * RowOperands<Products>(head_dim),
                 values = RowOperands<Products>(block) * value_dim;
    const size_t scores = block * kMaxVectors * kLanes;
    const size_t queries = RoundUp(head_dim, kLanes) * kMaxVectors * kLanes;
    const size_t outputs = RoundUp(value_dim, kLanes) * kMaxVectors * kLanes;
    scratch_.Reset(Scratch::Bytes<Operand>(keys) + Scratch::Bytes<Operand>(values) +
                   Scratch::Bytes<float>(scores) +
                   tile_count_ * (Scratch::Bytes<float>(queries) + Scratch::Bytes<float>(outputs)));
    keys_ = scratch_.Take<Operand>(keys);
    values_ = scratch_.Take<Operand>(values);
    scores_ = scratch_.Take<float>(scores);
    for (size_t t = 0; t < tile_count_; ++t) {
      tiles_[t].queries = scratch_.Take<float>(queries);
      tiles_[t].outputs = scratch_.Take<float>(outputs);
    }
  }

  // Divides the rows among tiles that are as wide as possible, and about equal.
  void PackTiles() {
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
        PackVector(tile, v);
      }
    }
  }

  void PackVector(Tile& tile, size_t v) {
    const T* queries[kLanes];
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const Row row = view_.RowAt(tile.places[HWY_MIN(v * kLanes + lane, tile.row_count - 1)]);
      queries[lane] = view_.template Query<T>(row);
      tile.visible[v][lane] = view_.VisibleKeys(row);
      tile.mask_rows[v * kLanes + lane] = view_.MaskOffset(row);
    }
    PackRows<Products>(queries, static_cast<size_t>(args().head_dim), args().scale * kLog2E,
                       tile.vectors, tile.queries + v * kLanes);
    tile.largest[v] = hn::Set(DF(), kLowest);
    tile.sum[v] = hn::Zero(DF());
  }

  Block<Products> ReadBlock(size_t begin, size_t count) {
    const auto key = static_cast<int64_t>(begin);
    const auto head_dim = static_cast<size_t>(args().head_dim),
               value_dim = static_cast<size_t>(args().value_dim);
    return {KeyOperands<Products>(view_.template Key<T>(key), args().key_strides.token, count,
                                  head_dim, keys_),
            ValueOperands<Products>(view_.template Value<T>(key), args().value_strides.token, count,
                                    value_dim, values_),
            begin, count, scores_};
  }

  void WithWidth(Tile& tile, const Block<Products>& block) {
    switch (tile.vectors) {
      case 1:
        return Mask<1>(tile, block);
      case 2:
        return Mask<2>(tile, block);
      default:
        return Mask<kMaxVectors>(tile, block);
    }
  }

  // Leaves out what the mask hides from every row of the tile.
  template <size_t kWidth>
  void Mask(Tile& tile, Block<Products> block) {
    if (tile.MostVisible(kWidth - 1) <= static_cast<int64_t>(block.begin)) {
      return;
    }
    if (args().mask.data == nullptr) {
      return Attend<kWidth>(tile, block, false);
    }
    const MaskEffect effect =
        WriteBiases<kWidth>(args().mask, tile.mask_rows, block.begin, block.count, block.scores);
    if (effect.last_seen == 0) {
      return;
    }
    block.keys = block.keys.From(effect.first_seen);
    block.values = block.values.From(effect.first_seen / Products::kDepth);
    block.scores += effect.first_seen * kWidth * kLanes;
    block.begin += effect.first_seen;
    block.count = effect.last_seen - effect.first_seen;
    Attend<kWidth>(tile, block, !effect.neutral);
  }

  template <size_t kWidth>
  void Attend(Tile& tile, const Block<Products>& block, bool biased) {
    size_t ends[kWidth];  // of the keys that vector v looks at
    for (size_t v = 0; v < kWidth; ++v) {
      ends[v] = KeysToCompute(tile.MostVisible(v), block);
    }
    if (ends[kWidth - 1] == 0) {
      return;
    }
    const size_t plain = biased ? 0 : HWY_MIN(ends[0], SeenByAll(tile, block));
    if (args().causal) {
      HideLaterKeys<kWidth>(tile, block, plain, ends[kWidth - 1], biased);
    }

    VF largest[kWidth], decay[kWidth], sum[kWidth];
    for (size_t v = 0; v < kWidth; ++v) {
      largest[v] = tile.largest[v];
    }
    Score<kWidth, 0, false>(tile, block, 0, plain, largest);
    Score<kWidth, 0, true>(tile, block, plain, ends[0], largest);
    if constexpr (kWidth > 1) {
      Score<kWidth, 1, true>(tile, block, ends[0], ends[1], largest);
    }
    if constexpr (kWidth > 2) {
      Score<kWidth, 2, true>(tile, block, ends[1], ends[2], largest);
    }

    for (size_t v = 0; v < kWidth; ++v) {
      decay[v] = Exp2(hn::Sub(tile.largest[v], largest[v]));
      sum[v] = hn::Mul(tile.sum[v], decay[v]);
    }
    ExponentiateRange<Products, kWidth, 0>(0, ends[0], block.scores, largest, sum);
    if constexpr (kWidth > 1) {
      ExponentiateRange<Products, kWidth, 1>(ends[0], ends[1], block.scores, largest, sum);
    }
    if constexpr (kWidth > 2) {
      ExponentiateRange<Products, kWidth, 2>(ends[1], ends[2], block.scores, largest, sum);
    }
    for (size_t v = 0; v < kWidth; ++v) {
      tile.largest[v] = largest[v];
      tile.sum[v] = sum[v];
    }
    Weigh<kWidth>(tile, block, ends, decay);
    tile.fresh = false;
  }

  // Up to the last key that a row of the vector sees, in whole steps where the block has them.
  static size_t KeysToCompute(int32_t visible, const Block<Products>& block) {
    if (visible <= static_cast<int64_t>(block.begin)) {
      return 0;
    }
    return HWY_MIN(block.count, RoundUp(static_cast<size_t>(visible) - block.begin, kStep));
  }

  // Up to the first key that a row of the tile does not see, in whole steps.
  static size_t SeenByAll(const Tile& tile, const Block<Products>& block) {
    if (tile.FewestVisible() <= static_cast<int64_t>(block.begin)) {
      return 0;
    }
    const size_t seen = static_cast<size_t>(tile.FewestVisible()) - block.begin;
    return seen >= block.count ? block.count : seen / kStep * kStep;
  }

  // Biases of keys [begin, end): -inf in the lanes that do not see the key; else what is there if
  // `biased`, else 0.
  template <size_t kWidth>
  static void HideLaterKeys(const Tile& tile, const Block<Products>& block, size_t begin,
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
  void Score(const Tile& tile, const Block<Products>& block, size_t begin, size_t end,
             VF (&largest)[kWidth]) {
    ScoreRange<Products, kWidth, kFirst, kAdd>(
        block.keys, tile.queries, RowOperands<Products>(static_cast<size_t>(args().head_dim)),
        begin, end, block.scores, largest);
  }

  template <size_t kWidth>
  void Weigh(Tile& tile, const Block<Products>& block, const size_t (&ends)[kWidth],
             const VF (&decay)[kWidth]) {
    const auto value_dim = static_cast<size_t>(args().value_dim);
    size_t d = 0;
    const auto step = [&](auto features_at_once) HWY_ATTR {
      constexpr size_t kFeatures = decltype(features_at_once)::value;
      for (; d + kFeatures <= value_dim; d += kFeatures) {
        const OperandRows<Operand> values{block.values.data + d, block.values.stride};
        WeighFeatures<Products, kFeatures, kWidth>(values, block.scores, ends, decay, tile.fresh,
                                                   tile.outputs + d * kWidth * kLanes);
      }
    };
    step(std::integral_constant<size_t, kStep>());
    step(std::integral_constant<size_t, kStep / 2>());
    step(std::integral_constant<size_t, 1>());
  }

  void Finish(const Tile& tile) {
    const DF df;
    for (size_t v = 0; v < tile.vectors; ++v) {
      T* outputs[kLanes];
      HWY_ALIGN float gates[kLanes];
      const size_t count = HWY_MIN(kLanes, tile.row_count - v * kLanes);
      for (size_t lane = 0; lane < kLanes; ++lane) {
        const Row row = view_.RowAt(tile.places[HWY_MIN(v * kLanes + lane, tile.row_count - 1)]);
        outputs[lane] = view_.template Output<T>(row);
        gates[lane] = ScalarOf(view_.template Gate<T>(row));
      }
      const VF gate = hn::Load(df, gates);
      const VF factor = hn::IfThenElse(BlindRows(tile, v), hn::Mul(gate, hn::Zero(df)),
                                       hn::Div(gate, tile.sum[v]));
      if (tile.fresh) {
        ClearOutputs(tile, v);
      }
      UnpackRows(tile.outputs + v * kLanes, tile.vectors, factor,
                 static_cast<size_t>(args().value_dim), count, outputs);
    }
  }

  // The lanes whose row sees no key: their attention is 0. Where a row sees keys, its sum is at
  // least 1, or its scores are all -inf and it becomes NaN.
  hn::Mask<DF> BlindRows(const Tile& tile, size_t v) const {
    const DF df;
    const auto without_weight = hn::Eq(tile.sum[v], hn::Zero(df));
    if (hn::AllFalse(df, without_weight)) {
      return without_weight;
    }
    HWY_ALIGN float blind[kLanes];
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const size_t row = HWY_MIN(v * kLanes + lane, tile.row_count - 1);
      blind[lane] = SeesNoKey(view_, view_.RowAt(tile.places[row])) ? 1.0f : 0.0f;
    }
    return hn::And(without_weight, hn::Ne(hn::Load(df, blind), hn::Zero(df)));
  }

  void ClearOutputs(const Tile& tile, size_t v) {
    for (size_t d = 0; d < static_cast<size_t>(args().value_dim); ++d) {
      hn::Store(hn::Zero(DF()), DF(), tile.outputs + (d * tile.vectors + v) * kLanes);
    }
  }

  TaskView view_;
  Scratch& scratch_;
  Operand* keys_;
  Operand* values_;
  float* scores_;
  size_t tile_count_;
  Tile tiles_[kTilesPerTask];
};

}  // namespace HWY_NAMESPACE
}  // namespace moh::cpu
HWY_AFTER_NAMESPACE();
#endif
