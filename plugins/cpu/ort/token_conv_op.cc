#include "cpu/ort/token_conv_op.h"

#include <limits>

namespace moh::ort {
namespace {

constexpr const char* kName = contract::token_conv::kOp.name;

}  // namespace

TokenConvKernel::TokenConvKernel(const OrtKernelInfo* info, DType dtype,
                                 const cpu::Kernels& kernels)
    : dtype_(dtype), kernels_(kernels) {
  const Ort::ConstKernelInfo node(info);
  channels_ = int_attribute(node, contract::token_conv::kChannels);
  height_ = int_attribute(node, contract::token_conv::kHeight);
  width_ = int_attribute(node, contract::token_conv::kWidth);
  const bool gelu = choice_attribute(node, contract::token_conv::kActivation) == 1;
  activation_ = gelu ? Activation::kGelu : Activation::kNone;
  gated_ = flag_attribute(node, contract::token_conv::kGated);
  Tensors in;
  const bool constant = read_constant(node, 1, in.weight) && read_constant(node, 2, in.bias) &&
                        read_constant(node, 3, in.input_bias);
  if (constant && check_taps(in).IsOK()) {  // others are refused when the node runs
    constant_ = pack(read_args(in));
  }
}

Ort::Status TokenConvKernel::compute(Ort::KernelContext& context) const {
  const Tensors in{read_input(context, 0), read_input(context, 1), read_input(context, 2),
                   read_input(context, 3)};
  if (auto status = check_tokens(in.tokens); !status.IsOK()) {
    return status;
  }
  if (auto status = check_taps(in); !status.IsOK()) {
    return status;
  }
  TokenConvArgs args = read_args(in);
  const Shape shape{in.tokens.shape[0], in.tokens.shape[1], channels_};
  args.output = context.GetOutput(0, shape).GetTensorMutableRawData();
  const cpu::Parallel threads = session_threads(context);
  if (constant_.empty()) {
    kernels_.token_conv(args, pack(args).data(), threads);
  } else {
    kernels_.token_conv(args, constant_.data(), threads);
  }
  return Ort::Status();
}

std::vector<float> TokenConvKernel::pack(const TokenConvArgs& args) const {
  std::vector<float> packed(kernels_.packed_taps_size(args));
  kernels_.pack_taps(args, packed.data());
  return packed;
}

Ort::Status TokenConvKernel::check_tokens(const Input& input) const {
  const int64_t features = channels_ * (gated_ ? 2 : 1);
  const Shape& tokens = input.shape;
  if (tokens.size() != 3 || tokens[1] != height_ * width_ || tokens[2] != features) {
    return invalid_argument(kName, ": X is ", shape_text(tokens), "; expected [batch, ",
                            height_ * width_, ", ", features, "]: height ", height_, ", width ",
                            width_, ", channels ", channels_, gated_ ? " and their gates." : ".");
  }
  return Ort::Status();
}

Ort::Status TokenConvKernel::check_taps(const Tensors& in) const {
  const int64_t features = channels_ * (gated_ ? 2 : 1);
  const Shape& weight = in.weight.shape;
  if (weight.size() != 4 || weight[0] != channels_ || weight[1] != 1) {
    return invalid_argument(kName, ": W is ", shape_text(weight), "; expected [", channels_,
                            ", 1, kernel height, kernel width].");
  }
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  if (weight[2] % 2 != 1 || weight[3] % 2 != 1 || weight[2] * weight[3] > kMost) {
    return invalid_argument(kName, ": W is ", shape_text(weight),
                            "; expected a kernel of odd height and width.");
  }
  if (in.bias.present && in.bias.shape != Shape{channels_}) {
    return invalid_argument(kName, ": bias is ", shape_text(in.bias.shape), "; expected [",
                            channels_, "].");
  }
  if (in.input_bias.present && in.input_bias.shape != Shape{features}) {
    return invalid_argument(kName, ": input_bias is ", shape_text(in.input_bias.shape),
                            "; expected [", features, "].");
  }
  return Ort::Status();
}

TokenConvArgs TokenConvKernel::read_args(const Tensors& in) const {
  TokenConvArgs args{};
  args.dtype = dtype_;
  args.input = in.tokens.data;
  args.weight = in.weight.data;
  args.bias = in.bias.data;
  args.input_bias = in.input_bias.data;
  args.batch = in.tokens.present ? static_cast<int32_t>(in.tokens.shape[0]) : 0;
  args.height = static_cast<int32_t>(height_);
  args.width = static_cast<int32_t>(width_);
  args.channels = static_cast<int32_t>(channels_);
  args.kernel_height = static_cast<int32_t>(in.weight.shape[2]);
  args.kernel_width = static_cast<int32_t>(in.weight.shape[3]);
  args.activation = activation_;
  args.gated = gated_;
  return args;
}

}  // namespace moh::ort
