// moh::MoHRouter as a custom op: reads attributes and tensors, checks them, and calls the kernel.
#pragma once

#include <memory>

#include "ort/backend.h"

namespace moh::ort {

class RouterKernel {
 public:
  RouterKernel(const OrtKernelInfo* info, DType dtype, const Backend& backend);

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
  const Backend& backend_;
  int64_t top_k_, shared_;
  bool mask_only_;
};

template <DType kType>
struct RouterOp : Ort::CustomOpBase<RouterOp<kType>, RouterKernel, /*WithStatus=*/true> {
  explicit RouterOp(const Backend& backend) : backend(backend) {
    OrtCustomOp::version = kApiVersion;
  }

  OrtStatusPtr CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** kernel) const {
    return AsStatus(GetName(), [&] {
      *kernel = std::make_unique<RouterKernel>(info, kType, backend).release();
      return Ort::Status();
    });
  }

  const char* GetName() const { return "MoHRouter"; }
  const char* GetExecutionProviderType() const { return backend.ExecutionProvider(); }
  size_t GetInputTypeCount() const { return 3; }
  ONNXTensorElementDataType GetInputType(size_t) const { return ElementType(kType); }
  OrtCustomOpInputOutputCharacteristic GetInputCharacteristic(size_t) const {
    return INPUT_OUTPUT_OPTIONAL;
  }
  size_t GetOutputTypeCount() const { return 1; }
  ONNXTensorElementDataType GetOutputType(size_t) const { return ElementType(kType); }

  const Backend& backend;
};

}  // namespace moh::ort
