// moh::MoHQueryProjection and moh::MoHOutputProjection as custom ops: read attributes and tensors,
// check them, pack the weight, and call the kernel.
#pragma once

#include <cstdlib>
#include <memory>

#include "cpu/kernels.h"
#include "cpu/ort/session_threads.h"

namespace moh::ort {

enum class Projection : uint8_t { kQuery, kOutput };

// What the two have in common: the weight, packed for a set of kernels.
class ProjectionKernel {
 public:
  ProjectionKernel(const OrtKernelInfo* info, Projection projection, DType dtype,
                   const cpu::Kernels& kernels);

  OrtStatusPtr ComputeV2(OrtKernelContext* context) const;

 private:
  struct Free {
    void operator()(float* memory) const { std::free(memory); }
  };
  using Packed = std::unique_ptr<float[], Free>;

  struct Tensors {
    Input input, weight, gates, bias;
  };

  Packed Pack(const void* weight, const Shape& shape, const cpu::Parallel& parallel) const;
  Ort::Status Compute(Ort::KernelContext& context) const;
  Ort::Status CheckShapes(const Tensors& in) const;
  void Run(const Tensors& in, const float* packed, void* output,
           const cpu::Parallel& parallel) const;
  const char* Name() const;

  const Projection projection_;
  const DType dtype_;
  const cpu::Kernels& kernels_;
  int64_t heads_;
  Packed constant_;  // null: the weight is an input of each call
};

template <Projection kProjection, DType kType>
struct ProjectionOp
    : Ort::CustomOpBase<ProjectionOp<kProjection, kType>, ProjectionKernel, /*WithStatus=*/true> {
  explicit ProjectionOp(const cpu::Kernels& kernels) : kernels(kernels) {
    OrtCustomOp::version = kApiVersion;
  }

  OrtStatusPtr CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** kernel) const {
    return AsStatus(GetName(), [&] {
      *kernel = std::make_unique<ProjectionKernel>(info, kProjection, kType, kernels).release();
      return Ort::Status();
    });
  }

  const char* GetName() const {
    return kProjection == Projection::kQuery ? "MoHQueryProjection" : "MoHOutputProjection";
  }
  size_t GetInputTypeCount() const { return 4; }
  ONNXTensorElementDataType GetInputType(size_t) const { return ElementType(kType); }
  OrtCustomOpInputOutputCharacteristic GetInputCharacteristic(size_t index) const {
    return index == 3 ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
  }
  size_t GetOutputTypeCount() const { return 1; }
  ONNXTensorElementDataType GetOutputType(size_t) const { return ElementType(kType); }

  const cpu::Kernels& kernels;
};

template <DType kType>
using QueryProjectionOp = ProjectionOp<Projection::kQuery, kType>;
template <DType kType>
using OutputProjectionOp = ProjectionOp<Projection::kOutput, kType>;

}  // namespace moh::ort
