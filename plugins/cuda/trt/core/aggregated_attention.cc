#include "cuda/trt/core/ops.h"
#include "cuda/trt/core/sizes.h"

namespace moh::trt {
namespace {

namespace aggregated = contract::aggregated_attention;

const OpInfo& info() { return aggregated_attention_info(); }

class AggregatedAttention final : public Op {
 public:
  explicit AggregatedAttention(const Fields& fields)
      : heads_(fields.int_value(aggregated::kNumHeads)),
        height_(fields.int_value(aggregated::kHeight)),
        width_(fields.int_value(aggregated::kWidth)),
        kernel_height_(fields.int_value(aggregated::kKernelHeight)),
        kernel_width_(fields.int_value(aggregated::kKernelWidth)),
        normalize_(fields.flag(aggregated::kNormalize)),
        epsilon_(fields.float_value(aggregated::kEpsilon)) {}

  std::unique_ptr<Op> clone() const override {
    return std::make_unique<AggregatedAttention>(*this);
  }

  std::vector<Number> serialize() const override {
    return {{aggregated::kNumHeads.name, heads_},
            {aggregated::kHeight.name, height_},
            {aggregated::kWidth.name, width_},
            {aggregated::kKernelHeight.name, kernel_height_},
            {aggregated::kKernelWidth.name, kernel_width_},
            {aggregated::kNormalize.name, int32_t{normalize_ ? 1 : 0}},
            {aggregated::kEpsilon.name, epsilon_}};
  }

  void check(const Inputs& inputs) const override { sizes_of(inputs); }

  std::vector<OutputSize> output(const Inputs& inputs) const override {
    sizes_of(inputs);
    return {{0, 0}, {0, 1}, {0, 2}};  // as Q
  }

  void set_shapes(const Inputs& inputs) override {
    const Sizes sizes = sizes_of(inputs);
    args_ = {};
    args_.dtype = dtype_of(info(), inputs);
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

  void run(const Call& call) const override {
    AggregatedAttentionArgs args = args_;
    const void** const data[] = {&args.query,           &args.key,           &args.value,
                                 &args.pooled_key,      &args.pooled_value,  &args.gates,
                                 &args.query_embedding, &args.query_scale,   &args.window_bias,
                                 &args.pooled_bias,     &args.window_tokens, &args.window_offset};
    for (size_t i = 0; i < kMaxInputs; ++i) {
      *data[i] = call.inputs[i];
    }
    args.output = call.output;
    check_status(moh_cuda_aggregated_attention(&args, call.stream));
  }

 private:
  Sizes sizes_of(const Inputs& inputs) const {
    check_types(info(), inputs);
    Sizes sizes(info());
    sizes.set('H', heads_, "num_heads");
    sizes.set('N', int64_t{height_} * width_, "the image");
    sizes.set('L', int64_t{kernel_height_} * kernel_width_, "the window");
    measure(info(), inputs, sizes);
    sizes.divide('C', heads_, 'D', "Q");
    if (sizes['P'] == 0) {
      throw Refusal("pooled_K has no tokens; expected at least 1.");
    }
    sizes.check_limits();
    return sizes;
  }

  int32_t heads_, height_, width_, kernel_height_, kernel_width_;
  bool normalize_;
  float epsilon_;
  AggregatedAttentionArgs args_{};
};

std::unique_ptr<Op> create(const Fields& fields) {
  return std::make_unique<AggregatedAttention>(fields);
}

}  // namespace

const OpInfo& aggregated_attention_info() {
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
                           create};
  return info;
}

}  // namespace moh::trt
