#include "cpu/ort/token_conv_op.h"

#include "ort/node_kernel.h"

namespace moh::ort {
namespace {

constexpr const OpContract& kOp = contract::token_conv::kOp;

// False where a call may change W or a bias.
bool read_constant_taps(const Ort::ConstKernelInfo& info, node::Tensors& in) {
  for (size_t i = 1; i < kOp.num_inputs; ++i) {
    Input input;
    if (!read_constant(info, i, input)) {
      return false;
    }
    in[i] = tensor_of(std::move(input), kOp.inputs[i]);
  }
  return true;
}

}  // namespace

TokenConvKernel::TokenConvKernel(const OrtKernelInfo* info, DType, const cpu::Kernels& kernels)
    : kernels_(kernels), attributes_(read_attributes(Ort::ConstKernelInfo(info), kOp)) {
  node::Tensors in(kOp.num_inputs);
  if (!read_constant_taps(Ort::ConstKernelInfo(info), in)) {
    return;
  }
  // Taps that do not fit are refused when the node runs.
  static_cast<void>(unless_refused(kOp, [&] {
    TokenConvArgs args{};
    node::TokenConv::read_taps(attributes_, in, args);
    constant_ = pack(args);
  }));
}

Ort::Status TokenConvKernel::compute(Ort::KernelContext& context) const {
  TokenConvArgs args{};
  Shape shape;
  auto status = unless_refused(
      kOp, [&] { shape = node::TokenConv::read(attributes_, read_tensors(context, kOp), args); });
  if (!status.IsOK()) {
    return status;
  }
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

}  // namespace moh::ort
