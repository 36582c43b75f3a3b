#include "cuda/trt/core/ops.h"
#include "cuda/trt/core/sizes.h"

namespace moh::trt {
namespace {

namespace aggregated = contract::aggregated_attention;

const OpInfo& Info() { return AggregatedAttentionInfo(); }

class AggregatedAttention final : public Op {
 public:
  explicit AggregatedAttention(const Fields& fields)
      : heads_(fields.Int(aggregated::kNumHeads)),
        height_(fields.Int(aggregated::kHeight)),
        width_(fields.Int(aggregated::kWidth)),
        kernel_height_(fields.Int(aggregated::kKernelHeight)),
        kernel_width_(fields.Int(aggregated::kKernelWidth)),
        normalize_(fields.Flag(aggregated::kNormalize)),
        epsilon_(fields.Float(aggregated::kEpsilon)) {}

  std::unique_ptr<Op> Clone() const override {
    return std::make_unique<AggregatedAttention>(*this);
  }

  std::vector<Number> Serialize() const override {
    return {{aggregated::kNumHeads.name, heads_},
            {aggregated::kHeight.name, height_},
            {aggregated::kWidth.name, width_},
            {aggregated::kKernelHeight.name, kernel_height_},
            {aggregated::kKernelWidth.name, kernel_width_},
            {aggregated::kNormalize.name, int32_t{normalize_ ? 1 : 0}},
            {aggregated::kEpsilon.name, epsilon_}};
  }

  void Check(const Inputs& inputs) const override { SizesOf(inputs); }

  std::vector<OutputSize> Output(const Inputs& inputs) const override {
    SizesOf(inputs);
    return {{0, 0}, {0, 1}, {0, 2}};  // as Q
  }

  void SetShapes(const Inputs& inputs) override {
    const Sizes sizes = SizesOf(inputs);
    args_ = {};
    args_.dtype = DTypeOf(Info(), inputs);
    args_.batch = static_cast<int32_t>(sizes['B']);
    args_.heads = heads_;
    args_.head_dim = static_cast<int32_t>(sizes['D']);
    args_.height = height_;
    args_.width = width_;
    args_.kernel_height = kernel_height_;
    args_.kernel_width = kernel_width_;
    args_.pooled = static_cast<int32_t>(sizes['P']);
    args_.normalize = normalize_;
    args_.epsilon = epsilon_;
  }

  void Run(const Call& call) const override {
    AggregatedAttentionArgs args = args_;
    const void** const data[] = {&args.query,           &args.key,           &args.value,
                                 &args.pooled_key,      &args.pooled_value,  &args.gates,
                                 &args.query_embedding, &args.query_scale,   &args.window_bias,
                                 &args.pooled_bias,     &args.window_tokens, &args.window_offset};
    for (size_t i = 0; i < kMaxInputs; ++i) {
      *data[i] = call.inputs[i];
    }
    args.output = call.output;
    CheckStatus(moh_cuda_aggregated_attention(&args, call.stream));
  }

 private:
  Sizes SizesOf(const Inputs& inputs) const {
    CheckTypes(Info(), inputs);
    Sizes sizes(Info());
    sizes.Set('H', heads_, "num_heads");
    sizes.Set('N', int64_t{height_} * width_, "the image");
    sizes.Set('L', int64_t{kernel_height_} * kernel_width_, "the window");
    Measure(Info(), inputs, sizes);
    sizes.Divide('C', heads_, 'D', "Q");
    if (sizes['P'] == 0) {
      throw Refusal("pooled_K has no tokens; expected at least 1.");
    }
    sizes.CheckLimits();
    return sizes;
  }

  int32_t heads_, height_, width_, kernel_height_, kernel_width_;
  bool normalize_;
  float epsilon_;
  AggregatedAttentionArgs args_{};
};

std::unique_ptr<Op> Create(const Fields& fields) {
  return std::make_unique<AggregatedAttention>(fields);
}

}  // namespace

const OpInfo& AggregatedAttentionInfo() {
  static const OpInfo info{aggregated::kOp,
                           {{"BNC"},
                            {"BNC"},
                            {"BNC"},
                            {"BPC"},
                            {"BPC"},
                            {"BNH"},
                            {"HD"},
                            {"HN"},
                            {"HL"},
                            {"HNP"},
                            {"HDL"},
                            {"HL"}},
                           {},
                           {{'B', "batch size"},
                            {'N', "number of tokens (height * width)"},
                            {'C', "last size"},
                            {'P', "number of pooled tokens"},
                            {'H', "number of heads"},
                            {'D', "head size"},
                            {'L', "number of window places"}},
                           {{"head_dim", 'D', aggregated::kMostHeadDim},
                            {"window_places", 'L', aggregated::kMostWindowPlaces}},
                           Create};
  return info;
}

}  // namespace moh::trt
