// moh::MoHQueryProjectionNBits and moh::MoHOutputProjectionNBits as custom ops: read attributes and
// tensors, check them, pack the weight, and call the kernel.
#pragma once

#include <cstdlib>
#include <memory>

#include "cpu/kernels.h"
#include "cpu/ort/session_threads.h"
#include "ort/custom_op.h"

namespace moh::ort {

// What the two have in common: the weight, packed for a set of kernels.
class NBitsProjectionKernel {
 public:
  enum class Heads : uint8_t { kInColumns, kInRows };

  NBitsProjectionKernel(const OrtKernelInfo* info, const char* name, Heads heads,
                        const cpu::Kernels& kernels);

  Ort::Status compute(Ort::KernelContext& context) const;

 private:
  struct Free {
    void operator()(uint8_t* memory) const { std::free(memory); }
  };
  using Packed = std::unique_ptr<uint8_t[], Free>;

  struct Tensors {
    Input input, weight, gates, scales, bias;
  };

  Packed pack(const void* weight, const void* scales, const cpu::Parallel& parallel) const;
  Ort::Status check_shapes(const Tensors& in) const;
  void run(const Tensors& in, const uint8_t* packed, void* output,
           const cpu::Parallel& parallel) const;
  Shape weight_shape() const;
  Shape scales_shape() const;

  const char* const name_;
  const Heads place_;
  const cpu::Kernels& kernels_;
  int64_t heads_, rows_, columns_;
  Packed constant_;  // null: weight or scales are inputs of each call
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
