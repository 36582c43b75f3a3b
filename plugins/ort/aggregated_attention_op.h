// moh::MoHAggregatedAttention as a custom op: reads attributes and tensors, checks them, and calls
// the kernel.
#pragma once

#include <memory>

#include "ort/backend.h"

namespace moh::ort {

class AggregatedAttentionKernel {
 public:
  static constexpr size_t kInputs = 12, kRequiredInputs = 6;

  AggregatedAttentionKernel(const OrtKernelInfo* info, DType dtype, const Backend& backend);

  OrtStatusPtr ComputeV2(OrtKernelContext* context) const;

 private:
  using Inputs = Input[kInputs];

  Ort::Status Compute(Ort::KernelContext& context) const;
  Ort::Status ReadSizes(const Inputs& in, AggregatedAttentionArgs& args) const;
  static Ort::Status CheckShapes(const Inputs& in, const AggregatedAttentionArgs& args);

  const DType dtype_;
  const Backend& backend_;
  int64_t heads_, height_, width_, kernel_height_, kernel_width_;
  bool normalize_;
  float epsilon_;
};

template <DType kType>
struct AggregatedAttentionOp : Ort::CustomOpBase<AggregatedAttentionOp<kType>,
                                                 AggregatedAttentionKernel, /*WithStatus=*/true> {
  explicit AggregatedAttentionOp(const Backend& backend) : backend(backend) {
    OrtCustomOp::version = kApiVersion;
  }

  OrtStatusPtr CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** kernel) const {
    return AsStatus(GetName(), [&] {
      *kernel = std::make_unique<AggregatedAttentionKernel>(info, kType, backend).release();
      return Ort::Status();
    });
  }

  const char* GetName() const { return "MoHAggregatedAttention"; }
  const char* GetExecutionProviderType() const { return backend.ExecutionProvider(); }
  size_t GetInputTypeCount() const { return AggregatedAttentionKernel::kInputs; }
  ONNXTensorElementDataType GetInputType(size_t) const { return ElementType(kType); }
  OrtCustomOpInputOutputCharacteristic GetInputCharacteristic(size_t index) const {
    return index < AggregatedAttentionKernel::kRequiredInputs ? INPUT_OUTPUT_REQUIRED
                                                              : INPUT_OUTPUT_OPTIONAL;
  }
  size_t GetOutputTypeCount() const { return 1; }
  ONNXTensorElementDataType GetOutputType(size_t) const { return ElementType(kType); }

  const Backend& backend;
};

}  // namespace moh::ort
