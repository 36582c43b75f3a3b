// A band of tokens and one head: what MoHAggregatedAttention is for them.
//
// Tokens are in lanes, in the order of the image, so the neighbours at one offset are a vector,
// too, at a shift. What depends on the pooled keys alone is computed for the open tokens, put
// together.
#if defined(MOH_CPU_AGGREGATED_ATTENTION_BAND_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOH_CPU_AGGREGATED_ATTENTION_BAND_INL_H_
#undef MOH_CPU_AGGREGATED_ATTENTION_BAND_INL_H_
#else
#define MOH_CPU_AGGREGATED_ATTENTION_BAND_INL_H_
#endif

#include <cstring>
#include <type_traits>

#include "cpu/aggregated_attention/band_memory-inl.h"
#include "cpu/aggregated_attention/bands.h"
#include "cpu/aggregated_attention/panel-inl.h"
#include "cpu/aggregated_attention/products-inl.h"
#include "cpu/aggregated_attention/window-inl.h"
#include "cpu/scratch.h"

HWY_BEFORE_NAMESPACE();
namespace moh::cpu {
namespace HWY_NAMESPACE {

// Tokens are put together where that saves this share of the vectors, which is what it costs.
constexpr size_t kWorthPacking = 8;

template <typename T>
class BandTask : BandMemory {
 public:
  BandTask(const AggregatedAttentionArgs& args, const Window& window, const Band& band,
           Scratch& scratch)
      : BandMemory(args, band, scratch),
        window_(window),
        next_surrounded_(band.begin - HWY_MIN(lead_, band.begin)) {}

  void Run() {
    const size_t open = ReadGates();
    if (open == 0) {
      return ClearOutputs();
    }
    ReadHead();
    const size_t all_vectors = (band_.tokens() + kLanes - 1) / kLanes;
    const size_t open_vectors = (open + kLanes - 1) / kLanes;
    if ((all_vectors - open_vectors) * kWorthPacking < all_vectors) {
      AttendInOrder();
    } else {
      AttendPutTogether();
    }
  }

 private:
  // Group by group, each in the same memory.
  void AttendInOrder() {
    ForEachGroup(band_.tokens(), [&](size_t column, auto width) HWY_ATTR {
      constexpr size_t kWidth = decltype(width)::value;
      if (AnyOpen(column, kWidth)) {
        ScoreWindow<kWidth>(column, window_panels_);
        const size_t count = HWY_MIN(kWidth * kLanes, band_.tokens() - column);
        const auto first = static_cast<ptrdiff_t>(band_.begin + column);
        Attend<kWidth>(group_, count, [&](size_t i) { return first + static_cast<ptrdiff_t>(i); });
        AddWindow<kWidth>(column, window_panels_);
      }
      WriteOutputs<kWidth>(column);
    });
  }

  void AttendPutTogether() {
    size_t open = 0;
    ForEachGroup(band_.tokens(), [&](size_t column, auto width) HWY_ATTR {
      constexpr size_t kWidth = decltype(width)::value;
      if (AnyOpen(column, kWidth)) {
        ScoreWindow<kWidth>(column, window_panels_.From(column));
        open = PutTogether(column, kWidth, open);
      }
    });
    ForEachGroup(open, [&](size_t column, auto width) HWY_ATTR {
      constexpr size_t kWidth = decltype(width)::value;
      const size_t count = HWY_MIN(kWidth * kLanes, open - column);
      const int32_t* const tokens = open_tokens_ + column;
      Attend<kWidth>(packed_.From(column), count, [&](size_t i) { return ptrdiff_t{tokens[i]}; });
    });
    size_t taken = 0;
    ForEachGroup(band_.tokens(), [&](size_t column, auto width) HWY_ATTR {
      constexpr size_t kWidth = decltype(width)::value;
      if (AnyOpen(column, kWidth)) {
        taken = PutBack(column, kWidth, taken);
        AddWindow<kWidth>(column, window_panels_.From(column));
      }
      WriteOutputs<kWidth>(column);
    });
  }

  // Calls step(column, width) for groups of up to kMaxVectors vectors; `width` is an
  // integral_constant.
  template <class Step>
  static void ForEachGroup(size_t count, const Step& step) {
    size_t column = 0;
    for (; column + (kMaxVectors - 1) * kLanes < count; column += kGroupTokens) {
      step(column, std::integral_constant<size_t, kMaxVectors>());
    }
    if (column >= count) {
      return;
    }
    if (count - column > kLanes) {
      step(column, std::integral_constant<size_t, kMaxVectors - 1>());
    } else {
      step(column, std::integral_constant<size_t, 1>());
    }
  }

  // The first of this head's features of a token in [batch, tokens, heads * head_dim].
  template <typename Element>
  Element* Features(Element* tensor, size_t tokens, size_t token) const {
    return tensor + ((band_.batch * tokens + token) * heads_ + band_.head) * head_dim_;
  }
  TokenRows<const T> Tokens(const void* tensor, size_t token) const {
    return {Features(static_cast<const T*>(tensor), image_, token),
            static_cast<ptrdiff_t>(heads_ * head_dim_)};
  }
  TokenRows<T> Outputs(size_t token) const {
    return {Features(static_cast<T*>(args_.output), image_, token),
            static_cast<ptrdiff_t>(heads_ * head_dim_)};
  }

  // Returns how many are open.
  size_t ReadGates() {
    const auto* gates = static_cast<const T*>(args_.gates) +
                        (band_.batch * image_ + band_.begin) * heads_ + band_.head;
    size_t open = 0;
    for (size_t i = 0; i < band_.tokens(); ++i) {
      gates_[i] = ScalarOf(gates[i * heads_]);
      open += gates_[i] == 0.0f ? 0 : 1;
    }
    for (size_t i = band_.tokens(); i < RoundUp(band_.tokens(), kLanes); ++i) {
      gates_[i] = 0.0f;
    }
    return open;
  }

  void ClearOutputs() const {
    const TokenRows<T> outputs = Outputs(band_.begin);
    for (size_t i = 0; i < band_.tokens(); ++i) {
      std::memset(static_cast<void*>(outputs.Row(i)), 0, head_dim_ * sizeof(T));
    }
  }

  HWY_INLINE hn::Mask<DF> Open(size_t column) const {
    return hn::Not(hn::Eq(hn::Load(DF(), gates_ + column), hn::Zero(DF())));
  }

  bool AnyOpen(size_t column, size_t vectors) const {
    for (size_t v = 0; v < vectors; ++v) {
      if (!hn::AllFalse(DF(), Open(column + v * kLanes))) {
        return true;
      }
    }
    return false;
  }

  // What all tokens of the head share, in float32. Scores are powers of 2, so biases are too.
  void ReadHead() {
    const auto stride = static_cast<ptrdiff_t>(heads_ * head_dim_);
    const TokenRows<const T> keys{Features(static_cast<const T*>(args_.pooled_key), pooled_, 0),
                                  stride};
    for (size_t p = 0; p < pooled_; p += kLanes) {
      const Panel to = pooled_keys_.From(0, p);
      PackTokens(TokenRows<const T>{keys.Row(p), stride}, pooled_ - p, head_dim_, to);
      if (args_.normalize) {
        ScaleColumn(to, head_dim_, InverseLengths(to, head_dim_, args_.epsilon));
      }
    }
    ReadPooledValues({Features(static_cast<const T*>(args_.pooled_value), pooled_, 0), stride});
    ReadOfHead(args_.query_embedding, head_dim_, 1.0f, embedding_);
    ReadOfHead(args_.window_bias, offsets_, kLog2E, window_bias_);
    if (has_terms_) {
      ReadOfHead(args_.window_tokens, head_dim_ * offsets_, 1.0f, window_tokens_);
      ReadOfHead(args_.window_offset, offsets_, 1.0f, window_offset_);
    }
  }

  void ReadPooledValues(TokenRows<const T> values) {
    if constexpr (kInPlace) {
      pooled_values_ = {values.data, static_cast<size_t>(values.stride), 1};
    } else {
      for (size_t p = 0; p < pooled_; ++p) {
        CopyFloats(values.Row(p), head_dim_, 1.0f, value_copies_ + p * head_dim_);
      }
      pooled_values_ = {value_copies_, head_dim_, 1};
    }
  }

  // This head's `count` elements of a tensor, 0 if it is absent, times `factor`.
  void ReadOfHead(const void* tensor, size_t count, float factor, float* to) const {
    if (tensor == nullptr) {
      std::memset(to, 0, count * sizeof(float));
    } else {
      CopyFloats(static_cast<const T*>(tensor) + band_.head * count, count, factor, to);
    }
  }

  // Keys and values of the band's tokens before `column` and of those around them, as far as they
  // have not been read yet: the band's first token is at column `lead_`.
  void ReadSurrounded(size_t column) {
    const DF df;
    const size_t all = HWY_MIN(image_, band_.end + halo_);
    const size_t end = HWY_MIN(all, band_.begin + column + halo_);
    for (size_t& token = next_surrounded_; token < end; token += kLanes) {
      const size_t to = token + lead_ - band_.begin;
      const Panel keys = keys_.From(0, to);
      PackTokens(Tokens(args_.key, token), all - token, head_dim_, keys);
      PackTokens(Tokens(args_.value, token), all - token, head_dim_, values_.From(0, to));
      PrefetchTokens(args_.key, token + kGroupTokens, kLanes);
      PrefetchTokens(args_.value, token + kGroupTokens, kLanes);
      const VF factor =
          args_.normalize ? InverseLengths(keys, head_dim_, args_.epsilon) : hn::Set(df, 1.0f);
      hn::StoreU(factor, df, key_factors_ + to);
    }
  }

  void PrefetchTokens(const void* tensor, size_t token, size_t count) const {
    if (token < image_) {
      Prefetch(Tokens(tensor, token), HWY_MIN(count, image_ - token), head_dim_);
    }
  }

  void PrefetchBias(size_t token) const {
    if (args_.pooled_bias != nullptr && token < image_) {
      const size_t count = HWY_MIN(kGroupTokens, image_ - token) * pooled_;
      Prefetch(TokenRows<const T>{static_cast<const T*>(args_.pooled_bias) +
                                      (band_.head * image_ + token) * pooled_,
                                  0},
               1, count);
    }
  }

  // Queries and the softmax over the window of the group that begins at `column`.
  template <size_t kWidth>
  void ScoreWindow(size_t column, const WindowPanels& window) {
    ReadSurrounded(column + kWidth * kLanes);
    ReadQueries<kWidth>(column, window.terms);
    PrefetchTokens(args_.query, band_.begin + column + kGroupTokens, kGroupTokens);
    PrefetchTokens(args_.output, band_.begin + column, kGroupTokens);
    PrefetchBias(band_.begin + column + kGroupTokens);
    const ScaledKeys keys{keys_.From(0, lead_ + column), key_factors_ + lead_ + column};
    InEqualSteps(offsets_, [&](size_t first, auto count) HWY_ATTR {
      ScoreNeighbours<decltype(count)::value, kWidth>(group_.queries, keys, head_dim_,
                                                      window_.Of(band_.begin + column), first,
                                                      window_bias_, window.weights);
    });
    const DF df;
    VF largest[kWidth], sum[kWidth];
    for (size_t v = 0; v < kWidth; ++v) {
      largest[v] = hn::Set(df, kLowest);
      sum[v] = hn::Zero(df);
      for (size_t l = 0; l < offsets_; ++l) {
        largest[v] = hn::Max(largest[v], hn::Load(df, window.weights.Row(l) + v * kLanes));
      }
    }
    Exponentiate<kWidth>(window.weights, offsets_, largest, sum);
    for (size_t v = 0; v < kWidth; ++v) {
      hn::Store(largest[v], df, group_.softmax.Row(TokenPanels::kLargest) + v * kLanes);
      hn::Store(sum[v], df, group_.softmax.Row(TokenPanels::kSum) + v * kLanes);
    }
  }

  // Queries as the products want them, and what they add to the weights of the window.
  template <size_t kWidth>
  void ReadQueries(size_t column, Panel terms) {
    const DF df;
    VF factor[kWidth];
    for (size_t v = 0; v < kWidth; ++v) {
      const size_t at = column + v * kLanes;
      const Panel queries = group_.queries.From(0, v * kLanes);
      PackTokens(Tokens(args_.query, band_.begin + at), band_.tokens() - at, head_dim_, queries);
      factor[v] =
          args_.normalize ? InverseLengths(queries, head_dim_, args_.epsilon) : hn::Set(df, 1.0f);
    }
    if (has_terms_) {
      InEqualSteps(offsets_, [&](size_t first, auto count) HWY_ATTR {
        const Matrix tokens{window_tokens_ + first, 1, offsets_};
        WriteTerms<decltype(count)::value, kWidth>(tokens, group_.queries, head_dim_, factor,
                                                   window_offset_ + first, terms.From(first, 0));
      });
    }
    for (size_t v = 0; v < kWidth; ++v) {
      const VF scale = Scale(column + v * kLanes);
      for (size_t d = 0; d < head_dim_; ++d) {
        float* const query = group_.queries.Row(d) + v * kLanes;
        const VF embedded = hn::MulAdd(hn::Load(df, query), factor[v], hn::Set(df, embedding_[d]));
        hn::Store(hn::Mul(embedded, scale), df, query);
      }
    }
  }

  // The scale of kLanes queries; log2(e) makes powers of 2 of scores.
  HWY_INLINE VF Scale(size_t column) const {
    const VF log2e = hn::Set(DF(), kLog2E);
    if (args_.query_scale == nullptr) {
      return log2e;
    }
    const auto* scales =
        static_cast<const T*>(args_.query_scale) + band_.head * image_ + band_.begin;
    return hn::Mul(LoadPart(scales, column, band_.tokens()), log2e);
  }

  // Softmax over window and pooled keys: writes the sum of pooled values, and the factor of the
  // window's weights. token(i) is the i-th of `count` tokens.
  template <size_t kWidth, class Token>
  void Attend(const TokenPanels& group, size_t count, const Token& token) {
    const DF df;
    VF window[kWidth], largest[kWidth], sum[kWidth];
    for (size_t v = 0; v < kWidth; ++v) {
      window[v] = hn::Load(df, group.softmax.Row(TokenPanels::kLargest) + v * kLanes);
      largest[v] = window[v];
      if (args_.pooled_bias != nullptr) {
        ReadPooledBias(v * kLanes, count, token);
      }
    }
    InEqualSteps(pooled_, [&](size_t first, auto step) HWY_ATTR {
      const Matrix keys{pooled_keys_.data + first, 1, pooled_keys_.pitch};
      ScoreShared<decltype(step)::value, kWidth>(keys, group.queries, head_dim_,
                                                 args_.pooled_bias != nullptr,
                                                 scores_.From(first, 0), largest);
    });
    for (size_t v = 0; v < kWidth; ++v) {
      window[v] = Exp2(hn::Sub(window[v], largest[v]));
      const VF weights = hn::Load(df, group.softmax.Row(TokenPanels::kSum) + v * kLanes);
      sum[v] = hn::Mul(weights, window[v]);
    }
    Exponentiate<kWidth>(scores_, pooled_, largest, sum);
    for (size_t v = 0; v < kWidth; ++v) {
      sum[v] = hn::Div(hn::Set(df, 1.0f), sum[v]);
      hn::Store(hn::Mul(window[v], sum[v]), df,
                group.softmax.Row(TokenPanels::kFactor) + v * kLanes);
    }
    InEqualSteps(head_dim_, [&](size_t first, auto step) HWY_ATTR {
      const Matrix values{pooled_values_.data + first, pooled_values_.row, pooled_values_.column};
      WeighShared<decltype(step)::value, kWidth>(values, scores_, pooled_, sum,
                                                 group.outputs.From(first, 0));
    });
  }

  // scores[pooled][token] of kLanes tokens
  template <class Token>
  void ReadPooledBias(size_t at, size_t count, const Token& token) {
    const auto pooled = static_cast<ptrdiff_t>(pooled_);
    const auto* const biases = static_cast<const T*>(args_.pooled_bias) +
                               static_cast<ptrdiff_t>(band_.head * image_) * pooled;
    const auto row = [&](size_t i) HWY_ATTR { return biases + token(at + i) * pooled; };
    const auto store = [&](size_t p, VF bias) HWY_ATTR {
      hn::Store(hn::Mul(bias, hn::Set(DF(), kLog2E)), DF(), scores_.Row(p) + at);
    };
    if (count - at >= kLanes) {
      PackRowsOf(row, pooled_, store);
    } else {
      PackRowsOf([&](size_t i) HWY_ATTR { return row(HWY_MIN(i, count - at - 1)); }, pooled_,
                 store);
    }
  }

  // Appends the group's open tokens to the `open` ones that are together. Returns how many there
  // are.
  size_t PutTogether(size_t column, size_t vectors, size_t open) {
    for (size_t at = 0; at < vectors * kLanes; at += kLanes) {
      const auto is_open = Open(column + at);
      const auto move = [&](Panel from, Panel to, size_t rows) HWY_ATTR {
        for (size_t row = 0; row < rows; ++row) {
          hn::StoreU(hn::Compress(hn::Load(DF(), from.Row(row) + at), is_open), DF(),
                     to.Row(row) + open);
        }
      };
      move(group_.queries, packed_.queries, head_dim_);
      move(group_.softmax, packed_.softmax, TokenPanels::kSoftmaxRows);
      for (size_t lane = 0; lane < kLanes; ++lane) {
        open_tokens_[open] = static_cast<int32_t>(band_.begin + column + at + lane);
        open += gates_[column + at + lane] == 0.0f ? 0 : 1;
      }
    }
    return open;
  }

  // Brings the group's open tokens back, behind the first `taken` ones. Returns how many are taken.
  size_t PutBack(size_t column, size_t vectors, size_t taken) {
    for (size_t at = 0; at < vectors * kLanes; at += kLanes) {
      const auto is_open = Open(column + at);
      const auto move = [&](Panel from, Panel to, size_t rows) HWY_ATTR {
        for (size_t row = 0; row < rows; ++row) {
          hn::Store(hn::Expand(hn::LoadU(DF(), from.Row(row) + taken), is_open), DF(),
                    to.Row(row) + at);
        }
      };
      move(packed_.outputs, group_.outputs, head_dim_);
      move(packed_.softmax.From(TokenPanels::kFactor, 0),
           group_.softmax.From(TokenPanels::kFactor, 0), 1);
      taken += hn::CountTrue(DF(), is_open);
    }
    return taken;
  }

  // Adds the values of the window to the outputs of the group that begins at `column`.
  template <size_t kWidth>
  void AddWindow(size_t column, const WindowPanels& window) {
    const DF df;
    for (size_t v = 0; v < kWidth; ++v) {
      const VF factor = hn::Load(df, group_.softmax.Row(TokenPanels::kFactor) + v * kLanes);
      for (size_t l = 0; l < offsets_; ++l) {
        float* const weight = window.weights.Row(l) + v * kLanes;
        const VF term = has_terms_ ? hn::Load(df, window.terms.Row(l) + v * kLanes) : hn::Zero(df);
        hn::Store(hn::MulAdd(hn::Load(df, weight), factor, term), df, weight);
      }
    }
    InEqualSteps(head_dim_, [&](size_t first, auto step) HWY_ATTR {
      WeighNeighbours<decltype(step)::value, kWidth>(values_.From(first, lead_ + column),
                                                     window_.Of(band_.begin + column),
                                                     window.weights, group_.outputs.From(first, 0));
    });
  }

  // Outputs of the group that begins at `column`; 0 for closed gates.
  template <size_t kWidth>
  void WriteOutputs(size_t column) {
    for (size_t at = column; at < HWY_MIN(band_.tokens(), column + kWidth * kLanes); at += kLanes) {
      UnpackTokens(group_.outputs.From(0, at - column), hn::Load(DF(), gates_ + at), Open(at),
                   HWY_MIN(kLanes, band_.tokens() - at), head_dim_, Outputs(band_.begin + at));
    }
  }

  // Whether pooled values are read where they lie.
  static constexpr bool kInPlace = std::is_same<T, float>::value;

  const Window& window_;
  size_t next_surrounded_;  // the first token whose key and value have not been read
  Matrix pooled_values_;    // [pooled][head_dim]
};

}  // namespace HWY_NAMESPACE
}  // namespace moh::cpu
HWY_AFTER_NAMESPACE();
#endif
