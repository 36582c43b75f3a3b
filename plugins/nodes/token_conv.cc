#include "nodes/token_conv.h"

#include <limits>

namespace moh::node {
namespace {

void read_attributes(const Attributes& attributes, TokenConvArgs& args) {
  args.channels = attributes.integer(contract::token_conv::kChannels);
  args.height = attributes.integer(contract::token_conv::kHeight);
  args.width = attributes.integer(contract::token_conv::kWidth);
  const bool gelu = attributes.integer(contract::token_conv::kActivation) == 1;
  args.activation = gelu ? Activation::kGelu : Activation::kNone;
  args.gated = attributes.flag(contract::token_conv::kGated);
}

int64_t features_of(const TokenConvArgs& args) {
  return int64_t{args.channels} * (args.gated ? 2 : 1);
}

void check_taps(const Tensors& in, int64_t channels, int64_t features) {
  const Shape& weight = in[1].shape;
  if (weight.size() != 4 || weight[0] != channels || weight[1] != 1) {
    refuse("W is ", shape_text(weight), "; expected [", channels,
           ", 1, kernel height, kernel width].");
  }
  constexpr int64_t kMostTaps = std::numeric_limits<int32_t>::max();
  if (weight[2] % 2 != 1 || weight[3] % 2 != 1 || weight[2] * weight[3] > kMostTaps) {
    refuse("W is ", shape_text(weight), "; expected a kernel of odd height and width.");
  }
  if (in[2].present && in[2].shape != Shape{channels}) {
    refuse("bias is ", shape_text(in[2].shape), "; expected [", channels, "].");
  }
  if (in[3].present && in[3].shape != Shape{features}) {
    refuse("input_bias is ", shape_text(in[3].shape), "; expected [", features, "].");
  }
}

}  // namespace

void TokenConv::read_taps(const Attributes& attributes, const Tensors& in, Args& args) {
  read_attributes(attributes, args);
  check_taps(in, args.channels, features_of(args));
  const Shape& weight = in[1].shape;
  args.dtype = in[1].dtype;
  args.weight = in[1].data;
  args.bias = in[2].data;
  args.input_bias = in[3].data;
  args.kernel_height = static_cast<int32_t>(weight[2]);
  args.kernel_width = static_cast<int32_t>(weight[3]);
}

Shape TokenConv::read(const Attributes& attributes, const Tensors& in, Args& args) {
  read_attributes(attributes, args);
  const int64_t pixels = int64_t{args.height} * args.width;
  const int64_t features = features_of(args);
  const Shape& tokens = in[0].shape;
  if (tokens.size() != 3 || tokens[0] > kMost || tokens[1] != pixels || tokens[2] != features) {
    refuse("X is ", shape_text(tokens), "; expected [batch, ", pixels, ", ", features, "]: height ",
           args.height, ", width ", args.width, ", channels ", args.channels,
           args.gated ? " and their gates." : ".");
  }
  read_taps(attributes, in, args);
  args.input = in[0].data;
  args.batch = static_cast<int32_t>(tokens[0]);
  return {tokens[0], tokens[1], args.channels};
}

}  // namespace moh::node
