#include "cuda/trt/core/ops.h"
#include "cuda/trt/core/sizes.h"

namespace moh::trt {
namespace {

constexpr int kRouted = 0, kShared = 1, kStage = 2;

class Router final : public Op {
 public:
  explicit Router(const Fields& fields)
      : top_k_(fields.int_value(contract::router::kTopK)),
        shared_(fields.int_value(contract::router::kNumSharedHeads)),
        mask_only_(fields.choice(contract::router::kGateMode) == 1) {}

  std::unique_ptr<Op> clone() const override { return std::make_unique<Router>(*this); }

  std::vector<Number> serialize() const override {
    return {{contract::router::kTopK.name, top_k_},
            {contract::router::kNumSharedHeads.name, shared_},
            {contract::router::kGateMode.name, int32_t{mask_only_ ? 1 : 0}}};
  }

  void check(const Inputs& inputs) const override { sizes_of(inputs); }

  std::vector<OutputSize> output(const Inputs& inputs) const override {
    sizes_of(inputs);
    const size_t first = inputs[kRouted].present ? kRouted : inputs[kShared].present ? 1 : 2;
    OutputSize heads{first, 2};  // [B, S, shared + routed]
    heads.add = shared_;
    heads.multiply = inputs[kRouted].present ? 1 : 0;
    return {{first, 0}, {first, 1}, heads};
  }

  void set_shapes(const Inputs& inputs) override {
    const Sizes sizes = sizes_of(inputs);
    args_ = {};
    args_.dtype = dtype_of(router_info(), inputs);
    args_.tokens = sizes['B'] * sizes['S'];
    args_.routed = static_cast<int32_t>(inputs[kRouted].present ? sizes['R'] : 0);
    args_.shared = shared_;
    args_.top_k = top_k_;
    args_.mask_only = mask_only_;
  }

  void run(const Call& call) const override {
    RouterArgs args = args_;
    args.routed_logits = call.inputs[kRouted];
    args.shared_logits = call.inputs[kShared];
    args.stage_logits = call.inputs[kStage];
    args.gates = call.output;
    check_status(moh_cuda_router(&args, nullptr, call.stream));
  }

 private:
  Sizes sizes_of(const Inputs& inputs) const {
    check_types(router_info(), inputs);
    check_inputs(inputs);
    Sizes sizes(router_info());
    sizes.set('2', 2, "stage_logits");
    sizes.set('H', shared_, "num_shared_heads");
    measure(router_info(), inputs, sizes);
    if (inputs[kRouted].present && sizes['R'] != kUnknown && top_k_ > sizes['R']) {
      throw Refusal("field top_k is ", top_k_, "; expected at most the ", sizes['R'],
                    " heads of routed_logits.");
    }
    sizes.check_limits();
    return sizes;
  }

  void check_inputs(const Inputs& inputs) const {
    const bool routed = inputs[kRouted].present, shared = inputs[kShared].present;
    if (!routed && !shared && !inputs[kStage].present) {
      throw Refusal("no logits are given; expected at least one of three.");
    }
    if (routed != (top_k_ > 0)) {
      throw Refusal("field top_k is ", top_k_, "; expected ",
                    routed ? "at least 1, with routed_logits." : "0, without routed_logits.");
    }
    if (shared && shared_ == 0) {
      throw Refusal("field num_shared_heads is 0; expected at least 1, with shared_logits.");
    }
    if (!routed && shared_ == 0) {
      throw Refusal("field num_shared_heads is 0; expected at least 1, without routed_logits.");
    }
    if (mask_only_ && (shared || inputs[kStage].present)) {
      throw Refusal("field gate_mode is 'mask'; expected neither shared_logits nor stage_logits.");
    }
  }

  int32_t top_k_, shared_;
  bool mask_only_;
  RouterArgs args_{};
};

std::unique_ptr<Op> create(const Fields& fields) { return std::make_unique<Router>(fields); }

}  // namespace

const OpInfo& router_info() {
  static const OpInfo info{contract::router::kOp,
                           {{"BSR"}, {"BSH"}, {"BS2"}},
                           {},
                           {{'B', "batch size"},
                            {'S', "length"},
                            {'R', "last size"},
                            {'H', "last size"},
                            {'2', "last size"}},
                           {{"routed_heads", 'R', contract::router::kMostRoutedHeads},
                            {"shared_heads", 'H', contract::router::kMostSharedHeads}},
                           create};
  return info;
}

}  // namespace moh::trt
