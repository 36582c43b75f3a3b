// moh::MoHRouter as a custom op: reads attributes and tensors, checks them, and calls the kernel.
#pragma once

#include <memory>

#include "cpu/kernels.h"
#include "cpu/ort/ort.h"

namespace moh::ort {

class RouterKernel {
 public:
  RouterKernel(const OrtKernelInfo* info, DType dtype, const cpu::Kernels& kernels);

  OrtStatusPtr ComputeV2(OrtKernelContext* context) const;

 private:
  struct Tensors {
    Input routed, shared, stage;
  };

  Ort::Status Compute(Ort::KernelContext& context) const;
  Ort::Status ReadSizes(const Tensors& in, RouterArgs& args, Shape& gates) const;
  static Ort::Status ReadTokens(const Tensors& in, Shape& tokens);
  Ort::Status CheckHeads(const Tensors& in) const;

  const DType dtype_;
  const cpu::Kernels& kernels_;
  int64_t top_k_, shared_;
  bool mask_only_;
};

template <DType kType>
struct RouterOp : Ort::CustomOpBase<RouterOp<kType>, RouterKernel, /*WithStatus=*/true> {
  explicit RouterOp(const cpu::Kernels& kernels) : kernels(kernels) {
    OrtCustomOp::version = kApiVersion;
  }

  OrtStatusPtr CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** kernel) const {
    return AsStatus(GetName(), [&] {
      *kernel = std::make_unique<RouterKernel>(info, kType, kernels).release();
      return Ort::Status();
    });
  }

  const char* GetName() const { return "MoHRouter"; }
  size_t GetInputTypeCount() const { return 3; }
  ONNXTensorElementDataType GetInputType(size_t) const { return ElementType(kType); }
  OrtCustomOpInputOutputCharacteristic GetInputCharacteristic(size_t) const {
    return INPUT_OUTPUT_OPTIONAL;
  }
  size_t GetOutputTypeCount() const { return 1; }
  ONNXTensorElementDataType GetOutputType(size_t) const { return ElementType(kType); }

  const cpu::Kernels& kernels;
};

}  // namespace moh::ort
