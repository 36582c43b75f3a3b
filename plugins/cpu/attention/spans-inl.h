// Which keys of a block each vector of a tile computes, and what hides them from its rows.
#if defined(MOH_CPU_ATTENTION_SPANS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOH_CPU_ATTENTION_SPANS_INL_H_
#undef MOH_CPU_ATTENTION_SPANS_INL_H_
#else
#define MOH_CPU_ATTENTION_SPANS_INL_H_
#endif

#include "cpu/attention/mask-inl.h"
#include "cpu/attention/products-inl.h"
#include "cpu/attention/tile_memory-inl.h"
#include "cpu/simd/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace moh::cpu {
namespace HWY_NAMESPACE {

// A range of keys, within the block and counted from its beginning, in whole steps where the
// block has them; {all, 0} if no key is in the range.
inline KeySpan in_steps(KeyRange range, const BlockKeys& block) {
  const auto begin = static_cast<int64_t>(block.begin);
  const int64_t count = static_cast<int64_t>(block.count);
  const int64_t first = HWY_MAX(range.first - begin, int64_t{0});
  const int64_t end = HWY_MIN(range.end - begin, count);
  if (first >= end) {
    return {block.count, 0};
  }
  return {static_cast<size_t>(first) / kStep * kStep,
          HWY_MIN(block.count, round_up(static_cast<size_t>(end), kStep))};
}

// From the first to the last key that a vector computes.
template <size_t kWidth>
KeySpan seen_keys(const Tile& tile, const BlockKeys& block) {
  KeySpan keys{block.count, 0};
  for (size_t v = 0; v < kWidth; ++v) {
    const KeySpan seen = in_steps(tile.seen[v], block);
    keys = {HWY_MIN(keys.begin, seen.begin), HWY_MAX(keys.end, seen.end)};
  }
  return keys;
}

// Those of `keys` that every row sees, in whole steps.
inline KeySpan keys_of_all(const Tile& tile, const BlockKeys& block, KeySpan keys) {
  const auto begin = static_cast<int64_t>(block.begin);
  const int64_t first = HWY_MAX(tile.shared.first - begin, int64_t{0});
  const int64_t end = HWY_MIN(tile.shared.end - begin, static_cast<int64_t>(block.count));
  if (first >= end) {
    return {keys.end, keys.end};
  }
  const auto all = static_cast<size_t>(end);
  const size_t from = HWY_MAX(keys.begin, round_up(static_cast<size_t>(first), kStep));
  const size_t to = HWY_MIN(keys.end, all == block.count ? all : all / kStep * kStep);
  return from < to ? KeySpan{from, to} : KeySpan{keys.end, keys.end};
}

// Where each vector begins and ends by itself.
template <size_t kWidth>
Spans<kWidth> spans_within(const Tile& tile, const BlockKeys& block, KeySpan keys) {
  Spans<kWidth> spans;
  for (size_t v = 0; v < kWidth; ++v) {
    const KeySpan seen = in_steps(tile.seen[v], block);
    spans.begins[v] = HWY_MIN(HWY_MAX(seen.begin, keys.begin), keys.end);
    spans.ends[v] = HWY_MAX(HWY_MIN(seen.end, keys.end), keys.begin);
  }
  for (size_t v = 1; v < kWidth; ++v) {
    spans.ends[v] = HWY_MAX(spans.ends[v], spans.ends[v - 1]);
  }
  for (size_t v = kWidth - 1; v > 0; --v) {
    spans.begins[v - 1] = HWY_MIN(spans.begins[v - 1], spans.begins[v]);
  }
  return spans;
}

// Writes the biases of `keys`, if one is not 0. Returns what the mask leaves of them.
template <size_t kWidth>
KeySpan apply_mask(const AttentionMask& mask, const Tile& tile, const BlockKeys& block,
                   KeySpan keys, bool& biased) {
  const MaskEffect effect =
      write_biases<kWidth>(mask, tile.mask_rows, tile.least, block.begin + keys.begin,
                           keys.end - keys.begin, block.scores + keys.begin * kWidth * kLanes);
  biased = !effect.neutral;
  return {keys.begin + effect.first_seen / kStep * kStep, keys.begin + effect.last_seen};
}

// Biases of `keys`: -inf in the lanes that do not see the key; else what is there if `biased`,
// else 0.
template <size_t kWidth>
void hide_unseen(const Tile& tile, const BlockKeys& block, KeySpan keys, bool biased) {
  const DF df;
  const DI di;
  for (size_t v = 0; v < kWidth; ++v) {
    const VectorRanges ranges(tile, v);
    for (size_t key = keys.begin; key < keys.end; ++key) {
      const auto position = hn::Set(di, static_cast<int32_t>(block.begin + key));
      float* bias = block.scores + (key * kWidth + v) * kLanes;
      const auto seen = hn::AndNot(hn::Lt(position, ranges.first), hn::Lt(position, ranges.end));
      hn::Store(hn::IfThenElse(hn::RebindMask(df, seen), biased ? hn::Load(df, bias) : hn::Zero(df),
                               hn::Set(df, -kInfinity)),
                df, bias);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace moh::cpu
HWY_AFTER_NAMESPACE();
#endif
