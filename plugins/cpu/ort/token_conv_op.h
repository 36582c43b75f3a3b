// moh::MoHTokenConv as a custom op: reads attributes and tensors, checks them, packs weight and
// biases, and calls the kernel.
#pragma once

#include <memory>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/ort/session_threads.h"

namespace moh::ort {

class TokenConvKernel {
 public:
  TokenConvKernel(const OrtKernelInfo* info, DType dtype, const cpu::Kernels& kernels);

  OrtStatusPtr ComputeV2(OrtKernelContext* context) const;

 private:
  struct Tensors {
    Input tokens, weight, bias, input_bias;
  };

  Ort::Status Compute(Ort::KernelContext& context) const;
  Ort::Status CheckTokens(const Input& tokens) const;
  Ort::Status CheckTaps(const Tensors& in) const;
  TokenConvArgs ReadArgs(const Tensors& in) const;
  std::vector<float> Pack(const TokenConvArgs& args) const;

  const DType dtype_;
  const cpu::Kernels& kernels_;
  int64_t channels_, height_, width_;
  Activation activation_;
  bool gated_;
  std::vector<float> constant_;  // empty: weight or a bias is an input of each call
};

template <DType kType>
struct TokenConvOp : Ort::CustomOpBase<TokenConvOp<kType>, TokenConvKernel, /*WithStatus=*/true> {
  explicit TokenConvOp(const cpu::Kernels& kernels) : kernels(kernels) {
    OrtCustomOp::version = kApiVersion;
  }

  OrtStatusPtr CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** kernel) const {
    return AsStatus(GetName(), [&] {
      *kernel = std::make_unique<TokenConvKernel>(info, kType, kernels).release();
      return Ort::Status();
    });
  }

  const char* GetName() const { return "MoHTokenConv"; }
  size_t GetInputTypeCount() const { return 4; }
  ONNXTensorElementDataType GetInputType(size_t) const { return ElementType(kType); }
  OrtCustomOpInputOutputCharacteristic GetInputCharacteristic(size_t index) const {
    return index >= 2 ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
  }
  size_t GetOutputTypeCount() const { return 1; }
  ONNXTensorElementDataType GetOutputType(size_t) const { return ElementType(kType); }

  const cpu::Kernels& kernels;
};

}  // namespace moh::ort
