// moh::MoHMatMulNBits as a custom op: reads attributes and tensors, checks them, calls the kernel.
#pragma once

#include "cpu/kernels.h"
#include "cpu/ort/nbits_weight.h"
#include "cpu/ort/session_threads.h"
#include "ort/custom_op.h"

namespace moh::ort {

class NBitsProductKernel {
 public:
  NBitsProductKernel(const OrtKernelInfo* info, DType, const cpu::Kernels& kernels);

  Ort::Status compute(Ort::KernelContext& context) const;

 private:
  const cpu::Kernels& kernels_;
  NBitsWeightSizes sizes_;
};

using NBitsProductOp =
    CustomOp<contract::mat_mul_n_bits::kOp, DType::kFloat32, NBitsProductKernel, cpu::Kernels>;

}  // namespace moh::ort
