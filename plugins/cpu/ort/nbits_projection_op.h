// moh::MoHQueryProjectionNBits and moh::MoHOutputProjectionNBits as custom ops: read attributes and
// tensors, check them, and call the kernel.
#pragma once

#include "cpu/kernels.h"
#include "cpu/ort/nbits_weight.h"
#include "cpu/ort/session_threads.h"
#include "ort/custom_op.h"

namespace moh::ort {

class NBitsProjectionKernel {
 public:
  enum class Heads : uint8_t { kInColumns, kInRows };

  NBitsProjectionKernel(const OrtKernelInfo* info, const char* name, Heads heads,
                        const cpu::Kernels& kernels);

  Ort::Status compute(Ort::KernelContext& context) const;

 private:
  struct Tensors {
    Input input, weight, gates, scales, bias;
  };

  Ort::Status check_shapes(const Tensors& in) const;

  const char* const name_;
  const Heads place_;
  const cpu::Kernels& kernels_;
  int64_t heads_;
  NBitsWeightSizes sizes_;
};

struct QueryProjectionNBitsKernel : NBitsProjectionKernel {
  QueryProjectionNBitsKernel(const OrtKernelInfo* info, DType, const cpu::Kernels& kernels)
      : NBitsProjectionKernel(info, contract::query_projection_n_bits::kOp.name, Heads::kInColumns,
                              kernels) {}
};

struct OutputProjectionNBitsKernel : NBitsProjectionKernel {
  OutputProjectionNBitsKernel(const OrtKernelInfo* info, DType, const cpu::Kernels& kernels)
      : NBitsProjectionKernel(info, contract::output_projection_n_bits::kOp.name, Heads::kInRows,
                              kernels) {}
};

using QueryProjectionNBitsOp = CustomOp<contract::query_projection_n_bits::kOp, DType::kFloat32,
                                        QueryProjectionNBitsKernel, cpu::Kernels>;
using OutputProjectionNBitsOp = CustomOp<contract::output_projection_n_bits::kOp, DType::kFloat32,
                                         OutputProjectionNBitsKernel, cpu::Kernels>;

}  // namespace moh::ort
