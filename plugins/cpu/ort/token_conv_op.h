// moh::MoHTokenConv as a custom op: reads attributes and tensors, checks them, packs weight and
// biases, and calls the kernel.
#pragma once

#include <memory>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/ort/session_threads.h"
#include "ort/custom_op.h"

namespace moh::ort {

class TokenConvKernel {
 public:
  TokenConvKernel(const OrtKernelInfo* info, DType dtype, const cpu::Kernels& kernels);

  Ort::Status compute(Ort::KernelContext& context) const;

 private:
  struct Tensors {
    Input tokens, weight, bias, input_bias;
  };

  Ort::Status check_tokens(const Input& tokens) const;
  Ort::Status check_taps(const Tensors& in) const;
  TokenConvArgs read_args(const Tensors& in) const;
  std::vector<float> pack(const TokenConvArgs& args) const;

  const DType dtype_;
  const cpu::Kernels& kernels_;
  int64_t channels_, height_, width_;
  Activation activation_;
  bool gated_;
  std::vector<float> constant_;  // empty: weight or a bias is an input of each call
};

template <DType kType>
using TokenConvOp = CustomOp<contract::token_conv::kOp, kType, TokenConvKernel, cpu::Kernels>;

}  // namespace moh::ort
