// moh::MoHQueryProjection and moh::MoHOutputProjection as custom ops: read attributes and tensors,
// check them, pack the weight, and call the kernel.
#pragma once

#include <cstdlib>
#include <memory>

#include "cpu/kernels.h"
#include "cpu/ort/session_threads.h"
#include "ort/custom_op.h"

namespace moh::ort {

enum class Projection : uint8_t { kQuery, kOutput };

// What the two have in common: the weight, packed for a set of kernels.
class ProjectionKernel {
 public:
  ProjectionKernel(const OrtKernelInfo* info, Projection projection, DType dtype,
                   const cpu::Kernels& kernels);

  Ort::Status compute(Ort::KernelContext& context) const;

 private:
  struct Free {
    void operator()(float* memory) const { std::free(memory); }
  };
  using Packed = std::unique_ptr<float[], Free>;

  struct Tensors {
    Input input, weight, gates, bias;
  };

  Packed pack(const void* weight, const Shape& shape, const cpu::Parallel& parallel) const;
  Ort::Status check_shapes(const Tensors& in) const;
  void run(const Tensors& in, const float* packed, void* output,
           const cpu::Parallel& parallel) const;
  const char* name() const;

  const Projection projection_;
  const DType dtype_;
  const cpu::Kernels& kernels_;
  int64_t heads_;
  Packed constant_;  // null: the weight is an input of each call
};

struct QueryProjectionKernel : ProjectionKernel {
  QueryProjectionKernel(const OrtKernelInfo* info, DType dtype, const cpu::Kernels& kernels)
      : ProjectionKernel(info, Projection::kQuery, dtype, kernels) {}
};

struct OutputProjectionKernel : ProjectionKernel {
  OutputProjectionKernel(const OrtKernelInfo* info, DType dtype, const cpu::Kernels& kernels)
      : ProjectionKernel(info, Projection::kOutput, dtype, kernels) {}
};

template <DType kType>
using QueryProjectionOp =
    CustomOp<contract::query_projection::kOp, kType, QueryProjectionKernel, cpu::Kernels>;
template <DType kType>
using OutputProjectionOp =
    CustomOp<contract::output_projection::kOp, kType, OutputProjectionKernel, cpu::Kernels>;

}  // namespace moh::ort
