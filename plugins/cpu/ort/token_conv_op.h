// moh::MoHTokenConv as a custom op: packs weight and biases, once where they are constant, and
// calls the kernel.
#pragma once

#include <vector>

#include "cpu/kernels.h"
#include "cpu/ort/session_threads.h"
#include "nodes/token_conv.h"
#include "ort/custom_op.h"

namespace moh::ort {

class TokenConvKernel {
 public:
  TokenConvKernel(const OrtKernelInfo* info, DType, const cpu::Kernels& kernels);

  Ort::Status compute(Ort::KernelContext& context) const;

 private:
  std::vector<float> pack(const TokenConvArgs& args) const;

  const cpu::Kernels& kernels_;
  const node::Attributes attributes_;
  std::vector<float> constant_;  // empty: weight or a bias is an input of each call
};

template <DType kType>
using TokenConvOp = CustomOp<contract::token_conv::kOp, kType, TokenConvKernel, cpu::Kernels>;

}  // namespace moh::ort
