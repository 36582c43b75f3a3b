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

  void run() {
    const size_t open = read_gates();
    if (open == 0) {
      return clear_outputs();
    }
    read_head();
    const size_t all_vectors = (band_.tokens() + kLanes - 1) / kLanes;
    const size_t open_vectors = (open + kLanes - 1) / kLanes;
    if ((all_vectors - open_vectors) * kWorthPacking < all_vectors) {
      attend_in_order();
    } else {
      attend_put_together();
    }
  }

 private:
  // Group by group, each in the same memory.
  void attend_in_order() {
    for_each_group(band_.tokens(), [&](size_t column, auto width) HWY_ATTR {
      constexpr size_t kWidth = decltype(width)::value;
      if (any_open(column, kWidth)) {
        score_window<kWidth>(column, window_panels_);
        const size_t count = HWY_MIN(kWidth * kLanes, band_.tokens() - column);
        const auto first = static_cast<ptrdiff_t>(band_.begin + column);
        attend<kWidth>(group_, count, [&](size_t i) { return first + static_cast<ptrdiff_t>(i); });
        add_window<kWidth>(column, window_panels_);
      }
      write_outputs<kWidth>(column);
    });
  }

  void attend_put_together() {
    size_t open = 0;
    for_each_group(band_.tokens(), [&](size_t column, auto width) HWY_ATTR {
      constexpr size_t kWidth = decltype(width)::value;
      if (any_open(column, kWidth)) {
        score_window<kWidth>(column, window_panels_.from(column));
        open = put_together(column, kWidth, open);
      }
    });
    for_each_group(open, [&](size_t column, auto width) HWY_ATTR {
      constexpr size_t kWidth = decltype(width)::value;
      const size_t count = HWY_MIN(kWidth * kLanes, open - column);
      const int32_t* const tokens = open_tokens_ + column;
      attend<kWidth>(packed_.from(column), count, [&](size_t i) { return ptrdiff_t{tokens[i]}; });
    });
    size_t taken = 0;
    for_each_group(band_.tokens(), [&](size_t column, auto width) HWY_ATTR {
      constexpr size_t kWidth = decltype(width)::value;
      if (any_open(column, kWidth)) {
        taken = put_back(column, kWidth, taken);
        add_window<kWidth>(column, window_panels_.from(column));
      }
      write_outputs<kWidth>(column);
    });
  }

  // Calls step(column, width) for groups of up to kMaxVectors vectors; `width` is an
  // integral_constant.
  template <class Step>
  static void for_each_group(size_t count, const Step& step) {
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
  Element* features(Element* tensor, size_t tokens, size_t token) const {
    return tensor + ((band_.batch * tokens + token) * heads_ + band_.head) * head_dim_;
  }
  TokenRows<const T> tokens_at(const void* tensor, size_t token) const {
    return {features(static_cast<const T*>(tensor), image_, token),
            static_cast<ptrdiff_t>(heads_ * head_dim_)};
  }
  TokenRows<T> outputs_at(size_t token) const {
    return {features(static_cast<T*>(args_.output), image_, token),
            static_cast<ptrdiff_t>(heads_ * head_dim_)};
  }

  // Returns how many are open.
  size_t read_gates() {
    const auto* gates = static_cast<const T*>(args_.gates) +
                        (band_.batch * image_ + band_.begin) * heads_ + band_.head;
    size_t open = 0;
    for (size_t i = 0; i < band_.tokens(); ++i) {
      gates_[i] = scalar_of(gates[i * heads_]);
      open += gates_[i] == 0.0f ? 0 : 1;
    }
    for (size_t i = band_.tokens(); i < round_up(band_.tokens(), kLanes); ++i) {
      gates_[i] = 0.0f;
    }
    return open;
  }

  void clear_outputs() const {
    const TokenRows<T> outputs = outputs_at(band_.begin);
    for (size_t i = 0; i < band_.tokens(); ++i) {
      std::memset(static_cast<void*>(outputs.row_at(i)), 0, head_dim_ * sizeof(T));
    }
  }

  HWY_INLINE hn::Mask<DF> open_at(size_t column) const {
    return hn::Not(hn::Eq(hn::Load(DF(), gates_ + column), hn::Zero(DF())));
  }

  bool any_open(size_t column, size_t vectors) const {
    for (size_t v = 0; v < vectors; ++v) {
      if (!hn::AllFalse(DF(), open_at(column + v * kLanes))) {
        return true;
      }
    }
    return false;
  }

  // What all tokens of the head share, in float32. Scores are powers of 2, so biases are too.
  void read_head() {
    const auto stride = static_cast<ptrdiff_t>(heads_ * head_dim_);
    const TokenRows<const T> keys{features(static_cast<const T*>(args_.pooled_key), pooled_, 0),
                                  stride};
    for (size_t p = 0; p < pooled_; p += kLanes) {
      const Panel to = pooled_keys_.from(0, p);
      pack_tokens(TokenRows<const T>{keys.row_at(p), stride}, pooled_ - p, head_dim_, to);
      if (args_.normalize) {
        scale_column(to, head_dim_, inverse_lengths(to, head_dim_, args_.epsilon));
      }
    }
    read_pooled_values({features(static_cast<const T*>(args_.pooled_value), pooled_, 0), stride});
    read_of_head(args_.query_embedding, head_dim_, 1.0f, embedding_);
    read_of_head(args_.window_bias, offsets_, kLog2E, window_bias_);
    if (has_terms_) {
      read_of_head(args_.window_tokens, head_dim_ * offsets_, 1.0f, window_tokens_);
      read_of_head(args_.window_offset, offsets_, 1.0f, window_offset_);
    }
  }

  void read_pooled_values(TokenRows<const T> values) {
    if constexpr (kInPlace) {
      pooled_values_ = {values.data, static_cast<size_t>(values.stride), 1};
    } else {
      for (size_t p = 0; p < pooled_; ++p) {
        copy_floats(values.row_at(p), head_dim_, 1.0f, value_copies_ + p * head_dim_);
      }
      pooled_values_ = {value_copies_, head_dim_, 1};
    }
  }

  // This head's `count` elements of a tensor, 0 if it is absent, times `factor`.
  void read_of_head(const void* tensor, size_t count, float factor, float* to) const {
    if (tensor == nullptr) {
      std::memset(to, 0, count * sizeof(float));
    } else {
      copy_floats(static_cast<const T*>(tensor) + band_.head * count, count, factor, to);
    }
  }

  // Keys and values of the band's tokens before `column` and of those around them, as far as they
  // have not been read yet: the band's first token is at column `lead_`.
  void read_surrounded(size_t column) {
    const DF df;
    const size_t all = HWY_MIN(image_, band_.end + halo_);
    const size_t end = HWY_MIN(all, band_.begin + column + halo_);
    for (size_t& token = next_surrounded_; token < end; token += kLanes) {
      const size_t to = token + lead_ - band_.begin;
      const Panel keys = keys_.from(0, to);
      pack_tokens(tokens_at(args_.key, token), all - token, head_dim_, keys);
      pack_tokens(tokens_at(args_.value, token), all - token, head_dim_, values_.from(0, to));
      prefetch_tokens(args_.key, token + kGroupTokens, kLanes);
      prefetch_tokens(args_.value, token + kGroupTokens, kLanes);
      const VF factor =
          args_.normalize ? inverse_lengths(keys, head_dim_, args_.epsilon) : hn::Set(df, 1.0f);
      hn::StoreU(factor, df, key_factors_ + to);
    }
  }

  void prefetch_tokens(const void* tensor, size_t token, size_t count) const {
    if (token < image_) {
      prefetch(tokens_at(tensor, token), HWY_MIN(count, image_ - token), head_dim_);
    }
  }

  void prefetch_bias(size_t token) const {
    if (args_.pooled_bias != nullptr && token < image_) {
      const size_t count = HWY_MIN(kGroupTokens, image_ - token) * pooled_;
      prefetch(TokenRows<const T>{static_cast<const T*>(args_.pooled_bias) +
                                      (band_.head * image_ + token) * pooled_,
                                  0},
               1, count);
    }
  }

  // Queries and the softmax over the window of the group that begins at `column`.
  template <size_t kWidth>
  void score_window(size_t column, const WindowPanels& window) {
    read_surrounded(column + kWidth * kLanes);
    read_queries<kWidth>(column, window.terms);
    prefetch_tokens(args_.query, band_.begin + column + kGroupTokens, kGroupTokens);
    prefetch_tokens(args_.output, band_.begin + column, kGroupTokens);
    prefetch_bias(band_.begin + column + kGroupTokens);
    const ScaledKeys keys{keys_.from(0, lead_ + column), key_factors_ + lead_ + column};
    in_equal_steps(offsets_, [&](size_t first, auto count) HWY_ATTR {
      score_neighbours<decltype(count)::value, kWidth>(group_.queries, keys, head_dim_,
                                                       window_.of(band_.begin + column), first,
                                                       window_bias_, window.weights);
    });
    const DF df;
    VF largest[kWidth], sum[kWidth];
    for (size_t v = 0; v < kWidth; ++v) {
      largest[v] = hn::Set(df, kLowest);
      sum[v] = hn::Zero(df);
      for (size_t l = 0; l < offsets_; ++l) {
        largest[v] = hn::Max(largest[v], hn::Load(df, window.weights.row_at(l) + v * kLanes));
      }
    }
    exponentiate<kWidth>(window.weights, offsets_, largest, sum);
    for (size_t v = 0; v < kWidth; ++v) {
      hn::Store(largest[v], df, group_.softmax.row_at(TokenPanels::kLargest) + v * kLanes);
      hn::Store(sum[v], df, group_.softmax.row_at(TokenPanels::kSum) + v * kLanes);
    }
  }

  // Queries as the products want them, and what they add to the weights of the window.
  template <size_t kWidth>
  void read_queries(size_t column, Panel terms) {
    const DF df;
    VF factor[kWidth];
    for (size_t v = 0; v < kWidth; ++v) {
      const size_t at = column + v * kLanes;
      const Panel queries = group_.queries.from(0, v * kLanes);
      pack_tokens(tokens_at(args_.query, band_.begin + at), band_.tokens() - at, head_dim_,
                  queries);
      factor[v] =
          args_.normalize ? inverse_lengths(queries, head_dim_, args_.epsilon) : hn::Set(df, 1.0f);
    }
    if (has_terms_) {
      in_equal_steps(offsets_, [&](size_t first, auto count) HWY_ATTR {
        const Matrix tokens{window_tokens_ + first, 1, offsets_};
        write_terms<decltype(count)::value, kWidth>(tokens, group_.queries, head_dim_, factor,
                                                    window_offset_ + first, terms.from(first, 0));
      });
    }
    for (size_t v = 0; v < kWidth; ++v) {
      const VF scale = scale_at(column + v * kLanes);
      for (size_t d = 0; d < head_dim_; ++d) {
        float* const query = group_.queries.row_at(d) + v * kLanes;
        const VF embedded = hn::MulAdd(hn::Load(df, query), factor[v], hn::Set(df, embedding_[d]));
        hn::Store(hn::Mul(embedded, scale), df, query);
      }
    }
  }

  // The scale of kLanes queries; log2(e) makes powers of 2 of scores.
  HWY_INLINE VF scale_at(size_t column) const {
    const VF log2e = hn::Set(DF(), kLog2E);
    if (args_.query_scale == nullptr) {
      return log2e;
    }
    const auto* scales =
        static_cast<const T*>(args_.query_scale) + band_.head * image_ + band_.begin;
    return hn::Mul(load_part(scales, column, band_.tokens()), log2e);
  }

  // Softmax over window and pooled keys: writes the sum of pooled values, and the factor of the
  // window's weights. token(i) is the i-th of `count` tokens.
  template <size_t kWidth, class Token>
  void attend(const TokenPanels& group, size_t count, const Token& token) {
    const DF df;
    VF window[kWidth], largest[kWidth], sum[kWidth];
    for (size_t v = 0; v < kWidth; ++v) {
      window[v] = hn::Load(df, group.softmax.row_at(TokenPanels::kLargest) + v * kLanes);
      largest[v] = window[v];
      if (args_.pooled_bias != nullptr) {
        read_pooled_bias(v * kLanes, count, token);
      }
    }
    in_equal_steps(pooled_, [&](size_t first, auto step) HWY_ATTR {
      const Matrix keys{pooled_keys_.data + first, 1, pooled_keys_.pitch};
      score_shared<decltype(step)::value, kWidth>(keys, group.queries, head_dim_,
                                                  args_.pooled_bias != nullptr,
                                                  scores_.from(first, 0), largest);
    });
    for (size_t v = 0; v < kWidth; ++v) {
      window[v] = exp2(hn::Sub(window[v], largest[v]));
      const VF weights = hn::Load(df, group.softmax.row_at(TokenPanels::kSum) + v * kLanes);
      sum[v] = hn::Mul(weights, window[v]);
    }
    exponentiate<kWidth>(scores_, pooled_, largest, sum);
    for (size_t v = 0; v < kWidth; ++v) {
      sum[v] = hn::Div(hn::Set(df, 1.0f), sum[v]);
      hn::Store(hn::Mul(window[v], sum[v]), df,
                group.softmax.row_at(TokenPanels::kFactor) + v * kLanes);
    }
    in_equal_steps(head_dim_, [&](size_t first, auto step) HWY_ATTR {
      const Matrix values{pooled_values_.data + first, pooled_values_.row, pooled_values_.column};
      weigh_shared<decltype(step)::value, kWidth>(values, scores_, pooled_, sum,
                                                  group.outputs.from(first, 0));
    });
  }

  // scores[pooled][token] of kLanes tokens
  template <class Token>
  void read_pooled_bias(size_t at, size_t count, const Token& token) {
    const auto pooled = static_cast<ptrdiff_t>(pooled_);
    const auto* const biases = static_cast<const T*>(args_.pooled_bias) +
                               static_cast<ptrdiff_t>(band_.head * image_) * pooled;
    const auto row = [&](size_t i) HWY_ATTR { return biases + token(at + i) * pooled; };
    const auto store = [&](size_t p, VF bias) HWY_ATTR {
      hn::Store(hn::Mul(bias, hn::Set(DF(), kLog2E)), DF(), scores_.row_at(p) + at);
    };
    if (count - at >= kLanes) {
      pack_rows_of(row, pooled_, store);
    } else {
      pack_rows_of([&](size_t i) HWY_ATTR { return row(HWY_MIN(i, count - at - 1)); }, pooled_,
                   store);
    }
  }

  // Appends the group's open tokens to the `open` ones that are together. Returns how many there
  // are.
  size_t put_together(size_t column, size_t vectors, size_t open) {
    for (size_t at = 0; at < vectors * kLanes; at += kLanes) {
      const auto is_open = open_at(column + at);
      const auto move = [&](Panel from, Panel to, size_t rows) HWY_ATTR {
        for (size_t row = 0; row < rows; ++row) {
          hn::StoreU(hn::Compress(hn::Load(DF(), from.row_at(row) + at), is_open), DF(),
                     to.row_at(row) + open);
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
  size_t put_back(size_t column, size_t vectors, size_t taken) {
    for (size_t at = 0; at < vectors * kLanes; at += kLanes) {
      const auto is_open = open_at(column + at);
      const auto move = [&](Panel from, Panel to, size_t rows) HWY_ATTR {
        for (size_t row = 0; row < rows; ++row) {
          hn::Store(hn::Expand(hn::LoadU(DF(), from.row_at(row) + taken), is_open), DF(),
                    to.row_at(row) + at);
        }
      };
      move(packed_.outputs, group_.outputs, head_dim_);
      move(packed_.softmax.from(TokenPanels::kFactor, 0),
           group_.softmax.from(TokenPanels::kFactor, 0), 1);
      taken += hn::CountTrue(DF(), is_open);
    }
    return taken;
  }

  // Adds the values of the window to the outputs of the group that begins at `column`.
  template <size_t kWidth>
  void add_window(size_t column, const WindowPanels& window) {
    const DF df;
    for (size_t v = 0; v < kWidth; ++v) {
      const VF factor = hn::Load(df, group_.softmax.row_at(TokenPanels::kFactor) + v * kLanes);
      for (size_t l = 0; l < offsets_; ++l) {
        float* const weight = window.weights.row_at(l) + v * kLanes;
        const VF term =
            has_terms_ ? hn::Load(df, window.terms.row_at(l) + v * kLanes) : hn::Zero(df);
        hn::Store(hn::MulAdd(hn::Load(df, weight), factor, term), df, weight);
      }
    }
    in_equal_steps(head_dim_, [&](size_t first, auto step) HWY_ATTR {
      weigh_neighbours<decltype(step)::value, kWidth>(
          values_.from(first, lead_ + column), window_.of(band_.begin + column), window.weights,
          group_.outputs.from(first, 0));
    });
  }

  // Outputs of the group that begins at `column`; 0 for closed gates.
  template <size_t kWidth>
  void write_outputs(size_t column) {
    for (size_t at = column; at < HWY_MIN(band_.tokens(), column + kWidth * kLanes); at += kLanes) {
      unpack_tokens(group_.outputs.from(0, at - column), hn::Load(DF(), gates_ + at), open_at(at),
                    HWY_MIN(kLanes, band_.tokens() - at), head_dim_, outputs_at(band_.begin + at));
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
