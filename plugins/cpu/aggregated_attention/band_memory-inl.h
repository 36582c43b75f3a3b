// The scratch memory of a band: what of it is where.
#if defined(MOH_CPU_AGGREGATED_ATTENTION_BAND_MEMORY_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOH_CPU_AGGREGATED_ATTENTION_BAND_MEMORY_INL_H_
#undef MOH_CPU_AGGREGATED_ATTENTION_BAND_MEMORY_INL_H_
#else
#define MOH_CPU_AGGREGATED_ATTENTION_BAND_MEMORY_INL_H_
#endif

#include "cpu/aggregated_attention/bands.h"
#include "cpu/aggregated_attention/panel-inl.h"
#include "cpu/scratch.h"
#include "moh/aggregated_attention.h"

HWY_BEFORE_NAMESPACE();
namespace moh::cpu {
namespace HWY_NAMESPACE {

constexpr size_t kGroupTokens = kMaxVectors * kLanes;

// Panels of tokens: in the order of the image, or the open ones put together.
struct TokenPanels {
  Panel queries;  // [head_dim], ready for the products with keys
  Panel softmax;  // rows below
  Panel outputs;  // [head_dim]

  // The largest score of the window, and the sum of its weights relative to that.
  static constexpr size_t kLargest = 0, kSum = 1;
  // What those weights are to be multiplied by, in place of the largest score.
  static constexpr size_t kFactor = kLargest;
  static constexpr size_t kSoftmaxRows = 2;

  HWY_INLINE TokenPanels from(size_t column) const {
    return {queries.from(0, column), softmax.from(0, column), outputs.from(0, column)};
  }
};

// What a group of tokens has of its window.
struct WindowPanels {
  Panel weights;  // [offsets], first scores
  Panel terms;    // [offsets], to be added to the weights

  HWY_INLINE WindowPanels from(size_t column) const {
    return {weights.from(0, column), terms.from(0, column)};
  }
};

// Sizes of a call, and the panels of one of its bands.
class BandMemory {
 protected:
  BandMemory(const AggregatedAttentionArgs& args, const Band& band, Scratch& scratch)
      : args_(args),
        band_(band),
        head_dim_(static_cast<size_t>(args.head_dim)),
        heads_(static_cast<size_t>(args.heads)),
        image_(static_cast<size_t>(args.height) * static_cast<size_t>(args.width)),
        offsets_(static_cast<size_t>(args.kernel_height) * static_cast<size_t>(args.kernel_width)),
        pooled_(static_cast<size_t>(args.pooled)),
        halo_(Bands::halo(args)),
        lead_(round_up(halo_, kLanes)),
        has_terms_(args.window_tokens != nullptr || args.window_offset != nullptr) {
    const size_t bytes = lay(scratch, false);
    scratch.reset(bytes);
    lay(scratch, true);
  }

  const AggregatedAttentionArgs& args_;
  const Band band_;
  const size_t head_dim_, heads_, image_, offsets_, pooled_;
  const size_t halo_;  // of the band, and
  const size_t lead_;  // the columns for it in front of the band's first token
  const bool has_terms_;
  Panel keys_, values_;  // [head_dim], of the band and around it
  float* key_factors_;   // of those keys
  TokenPanels group_, packed_;
  WindowPanels window_panels_;  // of the group, or of the band
  int32_t* open_tokens_;        // of `packed_`
  Panel scores_;                // [pooled], of a group
  float* gates_;
  Panel pooled_keys_;  // [head_dim], a pooled key in each lane
  float *value_copies_, *embedding_, *window_bias_, *window_tokens_, *window_offset_;

 private:
  // Lays out the memory and returns how much it is; without `take` only that.
  size_t lay(Scratch& scratch, bool take) {
    size_t used = 0;
    const auto floats = [&](size_t count) {
      used += Scratch::bytes<float>(count);
      return take ? scratch.take<float>(count) : nullptr;
    };
    const auto panel = [&](size_t rows, size_t columns) {
      const size_t pitch = panel_pitch(columns);
      return Panel{floats(rows * pitch), pitch};
    };
    const size_t columns = round_up(band_.tokens(), kLanes);
    const size_t surrounded = lead_ + columns + lead_;
    keys_ = panel(panel_rows(head_dim_), surrounded);
    key_factors_ = floats(keys_.pitch);
    values_ = panel(panel_rows(head_dim_), surrounded);
    window_panels_ = {panel(offsets_, columns), panel(has_terms_ ? offsets_ : 0, columns)};
    const auto tokens = [&](size_t count) {
      const size_t rows = panel_rows(head_dim_);
      return TokenPanels{panel(rows, count), panel(TokenPanels::kSoftmaxRows, count),
                         panel(rows, count)};
    };
    group_ = tokens(kGroupTokens);
    packed_ = tokens(columns);
    open_tokens_ = reinterpret_cast<int32_t*>(floats(columns + 1));
    scores_ = {floats(panel_rows(pooled_) * kGroupTokens), kGroupTokens};
    gates_ = floats(columns);
    pooled_keys_ = panel(panel_rows(head_dim_), pooled_);
    value_copies_ = floats(args_.dtype == DType::kFloat32 ? 0 : pooled_ * head_dim_);
    embedding_ = floats(head_dim_);
    window_bias_ = floats(offsets_);
    window_tokens_ = floats(head_dim_ * offsets_);
    window_offset_ = floats(offsets_);
    return used;
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace moh::cpu
HWY_AFTER_NAMESPACE();
#endif
