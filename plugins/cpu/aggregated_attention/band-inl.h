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

#include "cpu/aggregated_attention/bands.h"
#include "cpu/aggregated_attention/panel-inl.h"
#include "cpu/aggregated_attention/products-inl.h"
#include "cpu/aggregated_attention/window-inl.h"
#include "cpu/attention/scratch.h"

HWY_BEFORE_NAMESPACE();
namespace moh::cpu {
namespace HWY_NAMESPACE {

constexpr size_t kGroupTokens = kMaxVectors * kLanes;

// Tokens are put together where that saves this share of the vectors, which is what it costs.
constexpr size_t kWorthPacking = 8;

// Panels of the tokens that are computed: those of the image's order, or the open ones put
// together.
struct TokenPanels {
  Panel queries;  // [head_dim], ready for the products with keys
  Panel window;   // [offsets], scores and then weights
  Panel outputs;  // [head_dim]
  int32_t* tokens;

  HWY_INLINE TokenPanels From(size_t column) const {
    return {queries.From(column), window.From(column), outputs.From(column), tokens + column};
  }
};

template <typename T>
class BandTask {
 public:
  BandTask(const AggregatedAttentionArgs& args, const Band& band, Scratch& scratch)
      : args_(args),
        band_(band),
        head_dim_(static_cast<size_t>(args.head_dim)),
        heads_(static_cast<size_t>(args.heads)),
        image_(static_cast<size_t>(args.height) * static_cast<size_t>(args.width)),
        offsets_(static_cast<size_t>(args.kernel_height) * static_cast<size_t>(args.kernel_width)),
        pooled_(static_cast<size_t>(args.pooled)),
        halo_(Bands::Halo(args)),
        lead_(RoundUp(halo_, kLanes)),
        has_terms_(args.window_tokens != nullptr || args.window_offset != nullptr) {
    Lay(scratch, false);
    scratch.Reset(used_);
    Lay(scratch, true);
  }

  void Run() {
    const size_t open = ReadGates();
    if (open == 0) {
      return ClearOutputs();
    }
    ReadHead();
    ReadNeighbours();
    const size_t all_vectors = (band_.tokens() + kLanes - 1) / kLanes;
    const size_t open_vectors = (open + kLanes - 1) / kLanes;
    if ((all_vectors - open_vectors) * kWorthPacking < all_vectors) {
      return ForEachGroup(band_.tokens(), [&](size_t column, auto width) HWY_ATTR {
        constexpr size_t kWidth = decltype(width)::value;
        if (AnyOpen(column, kWidth)) {
          ScoreWindow<kWidth>(column);
          Attend<kWidth>(all_.From(column), HWY_MIN(kWidth * kLanes, band_.tokens() - column));
        }
        Finish<kWidth>(column);
      });
    }
    ForEachGroup(band_.tokens(), [&](size_t column, auto width) HWY_ATTR {
      if (AnyOpen(column, width)) {
        ScoreWindow<decltype(width)::value>(column);
      }
    });
    PutTogether();
    ForEachGroup(open, [&](size_t column, auto width) HWY_ATTR {
      constexpr size_t kWidth = decltype(width)::value;
      Attend<kWidth>(packed_.From(column), HWY_MIN(kWidth * kLanes, open - column));
    });
    PutBack();
    ForEachGroup(band_.tokens(), [&](size_t column, auto width)
                                     HWY_ATTR { Finish<decltype(width)::value>(column); });
  }

 private:
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

  // Lays out the scratch memory; at first only to see how much there is of it.
  void Lay(Scratch& scratch, bool take) {
    used_ = 0;
    const auto floats = [&](size_t count) {
      used_ += Scratch::Bytes<float>(count);
      return take ? scratch.Take<float>(count) : nullptr;
    };
    const auto panel = [&](size_t rows, size_t columns) {
      const size_t pitch = PanelPitch(columns);
      return Panel{floats(rows * pitch), pitch};
    };
    const auto bytes = [&](size_t count) {
      used_ += Scratch::Bytes<uint8_t>(count);
      return take ? scratch.Take<uint8_t>(count) : nullptr;
    };
    const size_t columns = RoundUp(band_.tokens(), kLanes);
    const size_t surrounded = lead_ + columns + lead_;
    keys_ = panel(PanelRows(head_dim_), surrounded);
    values_ = panel(PanelRows(head_dim_), surrounded);
    for (TokenPanels* panels : {&all_, &packed_}) {
      panels->queries = panel(PanelRows(head_dim_), columns);
      panels->window = panel(offsets_, columns);
      panels->outputs = panel(PanelRows(head_dim_), columns);
      panels->tokens = reinterpret_cast<int32_t*>(floats(columns));
    }
    terms_ = panel(has_terms_ ? offsets_ : 0, columns);
    scores_ = {floats(PanelRows(pooled_) * kGroupTokens), kGroupTokens};
    gates_ = floats(columns);
    pooled_keys_ = floats(pooled_ * head_dim_);
    pooled_values_ = floats(pooled_ * head_dim_);
    embedding_ = floats(head_dim_);
    window_bias_ = floats(offsets_);
    window_tokens_ = floats(head_dim_ * offsets_);
    window_offset_ = floats(offsets_);
    shifts_ = reinterpret_cast<ptrdiff_t*>(bytes(offsets_ * sizeof(ptrdiff_t)));
    inside_ = bytes(columns / kLanes * offsets_ * kMaskBytes + kMaskSlack);
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
    const T* const keys = Features(static_cast<const T*>(args_.pooled_key), pooled_, 0);
    const T* const values = Features(static_cast<const T*>(args_.pooled_value), pooled_, 0);
    for (size_t p = 0; p < pooled_; ++p) {
      const size_t from = p * heads_ * head_dim_, to = p * head_dim_;
      CopyToken(keys + from, head_dim_, args_.normalize, args_.epsilon, pooled_keys_ + to);
      CopyFloats(values + from, head_dim_, 1.0f, pooled_values_ + to);
    }
    ReadOfHead(args_.query_embedding, head_dim_, 1.0f, embedding_);
    ReadOfHead(args_.window_bias, offsets_, kLog2E, window_bias_);
    ReadOfHead(args_.window_tokens, head_dim_ * offsets_, 1.0f, window_tokens_);
    ReadOfHead(args_.window_offset, offsets_, 1.0f, window_offset_);
  }

  // This head's `count` elements of a tensor, 0 if it is absent, times `factor`.
  void ReadOfHead(const void* tensor, size_t count, float factor, float* to) const {
    if (tensor == nullptr) {
      std::memset(to, 0, count * sizeof(float));
    } else {
      CopyFloats(static_cast<const T*>(tensor) + band_.head * count, count, factor, to);
    }
  }

  void ReadNeighbours() {
    const int32_t half_height = args_.kernel_height / 2, half_width = args_.kernel_width / 2;
    Pixels pixels(band_.begin, args_.height, args_.width);
    uint8_t* inside = inside_;
    for (size_t column = 0; column < band_.tokens(); column += kLanes, pixels.Next()) {
      for (int32_t y = -half_height; y <= half_height; ++y) {
        for (int32_t x = -half_width; x <= half_width; ++x, inside += kMaskBytes) {
          hn::StoreMaskBits(DF(), pixels.Inside(y, x), inside);
        }
      }
    }
    ptrdiff_t* shift = shifts_;
    for (int32_t y = -half_height; y <= half_height; ++y) {
      for (int32_t x = -half_width; x <= half_width; ++x) {
        *shift++ = static_cast<ptrdiff_t>(y) * args_.width + x;
      }
    }
    ReadSurrounded(args_.key, args_.normalize, keys_);
    ReadSurrounded(args_.value, false, values_);
  }

  // The band's tokens and those around it: the band's first one is at column `lead_`.
  void ReadSurrounded(const void* tensor, bool normalize, Panel panel) const {
    const size_t begin = band_.begin - HWY_MIN(halo_, band_.begin);
    const size_t end = HWY_MIN(image_, band_.end + halo_);
    for (size_t token = begin; token < end; token += kLanes) {
      const Panel to = panel.From(token + lead_ - band_.begin);
      const VF squares =
          PackTokens(Tokens(tensor, token), HWY_MIN(kLanes, end - token), head_dim_, to);
      if (normalize) {
        ScaleColumn(to, head_dim_, InverseLength(squares, args_.epsilon));
      }
    }
  }

  Neighbours NeighboursOf(size_t column) const {
    return {shifts_, inside_ + column / kLanes * offsets_ * kMaskBytes, offsets_};
  }

  template <size_t kWidth>
  void ScoreWindow(size_t column) {
    ReadQueries<kWidth>(column);
    const TokenPanels group = all_.From(column);
    InEqualSteps(offsets_, [&](size_t first, auto count) HWY_ATTR {
      ScoreNeighbours<decltype(count)::value, kWidth>(group.queries, keys_.From(lead_ + column),
                                                      head_dim_, NeighboursOf(column), first,
                                                      window_bias_, group.window);
    });
  }

  // Queries as the products want them, and what they add to the weights of the window.
  template <size_t kWidth>
  void ReadQueries(size_t column) {
    const DF df;
    const Panel queries = all_.queries.From(column);
    VF factor[kWidth];
    for (size_t v = 0; v < kWidth; ++v) {
      const size_t at = column + v * kLanes;
      const size_t count = HWY_MIN(kLanes, band_.tokens() - at);
      const VF squares = PackTokens(Tokens(args_.query, band_.begin + at), count, head_dim_,
                                    queries.From(v * kLanes));
      factor[v] = args_.normalize ? InverseLength(squares, args_.epsilon) : hn::Set(df, 1.0f);
      for (size_t lane = 0; lane < kLanes; ++lane) {
        all_.tokens[at + lane] = static_cast<int32_t>(band_.begin + at + HWY_MIN(lane, count - 1));
      }
    }
    if (has_terms_) {
      const Panel terms = terms_.From(column);
      InEqualSteps(offsets_, [&](size_t first, auto count) HWY_ATTR {
        const Matrix tokens{window_tokens_ + first, 1, offsets_};
        WriteTerms<decltype(count)::value, kWidth>(tokens, queries, head_dim_, factor,
                                                   window_offset_ + first,
                                                   {terms.Row(first), terms.pitch});
      });
    }
    for (size_t v = 0; v < kWidth; ++v) {
      const VF scale = Scale(column + v * kLanes);
      for (size_t d = 0; d < head_dim_; ++d) {
        float* const query = queries.Row(d) + v * kLanes;
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

  // Softmax over window and pooled keys: leaves the weights of the window, and writes the sum of
  // pooled values.
  template <size_t kWidth>
  void Attend(const TokenPanels& group, size_t count) {
    const DF df;
    VF largest[kWidth], sum[kWidth];
    for (size_t v = 0; v < kWidth; ++v) {
      largest[v] = hn::Set(df, kLowest);
      sum[v] = hn::Zero(df);
      for (size_t l = 0; l < offsets_; ++l) {
        largest[v] = hn::Max(largest[v], hn::Load(df, group.window.Row(l) + v * kLanes));
      }
    }
    const bool biased = args_.pooled_bias != nullptr;
    if (biased) {
      ReadPooledBias<kWidth>(group.tokens, count);
    }
    const Matrix keys{pooled_keys_, head_dim_, 1}, values{pooled_values_, head_dim_, 1};
    InEqualSteps(pooled_, [&](size_t first, auto step) HWY_ATTR {
      ScoreShared<decltype(step)::value, kWidth>(keys.From(first), group.queries, head_dim_, biased,
                                                 {scores_.Row(first), scores_.pitch}, largest);
    });
    Exponentiate<kWidth>(group.window, offsets_, largest, sum);
    Exponentiate<kWidth>(scores_, pooled_, largest, sum);
    for (size_t v = 0; v < kWidth; ++v) {
      sum[v] = hn::Div(hn::Set(df, 1.0f), sum[v]);
      ScaleColumn(group.window.From(v * kLanes), offsets_, sum[v]);
    }
    InEqualSteps(head_dim_, [&](size_t first, auto step) HWY_ATTR {
      const Matrix features{values.data + first, values.row, values.column};
      WeighShared<decltype(step)::value, kWidth>(features, scores_, pooled_, sum,
                                                 {group.outputs.Row(first), group.outputs.pitch});
    });
  }

  // scores[pooled][token]
  template <size_t kWidth>
  void ReadPooledBias(const int32_t* tokens, size_t count) {
    const auto* biases = static_cast<const T*>(args_.pooled_bias) + band_.head * image_ * pooled_;
    for (size_t v = 0; v < kWidth; ++v) {
      for (size_t p = 0; p < pooled_; p += kLanes) {
        VF block[kLanes];
        for (size_t lane = 0; lane < kLanes; ++lane) {
          const int32_t token = tokens[HWY_MIN(v * kLanes + lane, count - 1)];
          block[lane] = LoadPart(biases + static_cast<size_t>(token) * pooled_, p, pooled_);
        }
        Transpose(block);
        for (size_t i = 0; i < kLanes; ++i) {
          hn::Store(hn::Mul(block[i], hn::Set(DF(), kLog2E)), DF(),
                    scores_.Row(p + i) + v * kLanes);
        }
      }
    }
  }

  // Queries and scores of the window of open tokens, one behind the other.
  void PutTogether() {
    const DF df;
    size_t to = 0;
    for (size_t column = 0; column < band_.tokens(); column += kLanes) {
      const auto open = Open(column);
      const auto move = [&](Panel from, Panel into, size_t rows) HWY_ATTR {
        for (size_t row = 0; row < rows; ++row) {
          hn::StoreU(hn::Compress(hn::Load(df, from.Row(row) + column), open), df,
                     into.Row(row) + to);
        }
      };
      move(all_.queries, packed_.queries, head_dim_);
      move(all_.window, packed_.window, offsets_);
      for (size_t lane = 0; lane < kLanes; ++lane) {
        packed_.tokens[to] = static_cast<int32_t>(band_.begin + column + lane);
        to += gates_[column + lane] == 0.0f ? 0 : 1;
      }
    }
  }

  // Weights of the window and outputs, back to the image's order.
  void PutBack() {
    const DF df;
    size_t from = 0;
    for (size_t column = 0; column < band_.tokens(); column += kLanes) {
      const auto open = Open(column);
      const auto move = [&](Panel out_of, Panel to, size_t rows) HWY_ATTR {
        for (size_t row = 0; row < rows; ++row) {
          hn::Store(hn::Expand(hn::LoadU(df, out_of.Row(row) + from), open), df,
                    to.Row(row) + column);
        }
      };
      move(packed_.outputs, all_.outputs, head_dim_);
      move(packed_.window, all_.window, offsets_);
      from += hn::CountTrue(df, open);
    }
  }

  // Adds the values of the window, and writes the outputs; 0 for closed gates.
  template <size_t kWidth>
  void Finish(size_t column) {
    const TokenPanels group = all_.From(column);
    if (AnyOpen(column, kWidth)) {
      if (has_terms_) {
        AddTerms(column, kWidth);
      }
      InEqualSteps(head_dim_, [&](size_t first, auto step) HWY_ATTR {
        const Panel values{values_.Row(first) + lead_ + column, values_.pitch};
        WeighNeighbours<decltype(step)::value, kWidth>(
            values, NeighboursOf(column), group.window,
            {group.outputs.Row(first), group.outputs.pitch});
      });
    }
    for (size_t v = 0; v < kWidth; ++v) {
      const size_t at = column + v * kLanes;
      UnpackTokens(group.outputs.From(v * kLanes), hn::Load(DF(), gates_ + at), Open(at),
                   HWY_MIN(kLanes, band_.tokens() - at), head_dim_, Outputs(band_.begin + at));
    }
  }

  void AddTerms(size_t column, size_t vectors) {
    const DF df;
    for (size_t l = 0; l < offsets_; ++l) {
      for (size_t v = 0; v < vectors; ++v) {
        float* const weight = all_.window.Row(l) + column + v * kLanes;
        const VF term = hn::Load(df, terms_.Row(l) + column + v * kLanes);
        hn::Store(hn::Add(hn::Load(df, weight), term), df, weight);
      }
    }
  }

  const AggregatedAttentionArgs& args_;
  const Band band_;
  const size_t head_dim_, heads_, image_, offsets_, pooled_;
  const size_t halo_, lead_;
  const bool has_terms_;
  size_t used_;
  Panel keys_, values_;  // of the band and around it
  TokenPanels all_, packed_;
  Panel terms_;   // [offsets], of all tokens
  Panel scores_;  // [pooled], of a group
  float *gates_, *pooled_keys_, *pooled_values_;
  float *embedding_, *window_bias_, *window_tokens_, *window_offset_;
  ptrdiff_t* shifts_;
  uint8_t* inside_;
};

}  // namespace HWY_NAMESPACE
}  // namespace moh::cpu
HWY_AFTER_NAMESPACE();
#endif
