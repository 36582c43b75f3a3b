// moh::MoHRouter as a custom op: reads attributes and tensors, checks them, and calls the kernel.
#pragma once

#include "ort/backend.h"
#include "ort/custom_op.h"

namespace moh::ort {

class RouterKernel {
 public:
  RouterKernel(const OrtKernelInfo* info, DType dtype, const Backend& backend);

  Ort::Status compute(Ort::KernelContext& context) const;

 private:
  struct Tensors {
    Input routed, shared, stage;
  };

  Ort::Status read_sizes(const Tensors& in, RouterArgs& args, Shape& gates) const;
  static Ort::Status read_tokens(const Tensors& in, Shape& tokens);
  Ort::Status check_heads(const Tensors& in) const;

  const DType dtype_;
  const Backend& backend_;
  int64_t top_k_, shared_;
  bool mask_only_;
};

template <DType kType>
using RouterOp = CustomOp<contract::router::kOp, kType, RouterKernel, Backend>;

}  // namespace moh::ort
