// moh::MoHAttention as a custom op: reads attributes and tensors, checks them, and calls the
// kernel.
#pragma once

#include <memory>

#include "ort/backend.h"

namespace moh::ort {

class AttentionKernel {
 public:
  AttentionKernel(const OrtKernelInfo* info, DType dtype, const Backend& backend);

  OrtStatusPtr ComputeV2(OrtKernelContext* context) const;

 private:
  struct Tensors {
    Input query, key, value, gates, mask;
  };

  Ort::Status Compute(Ort::KernelContext& context) const;
  Ort::Status ReadSizes(const Tensors& in, AttentionArgs& args) const;
  static Ort::Status CheckGates(const Tensors& in, const AttentionArgs& args);
  static Ort::Status ReadMask(const Input& mask, AttentionArgs& args);

  const DType dtype_;
  const Backend& backend_;
  int64_t q_heads_, kv_heads_;
  bool causal_;
  float scale_;
};

template <DType kType>
struct AttentionOp : Ort::CustomOpBase<AttentionOp<kType>, AttentionKernel, /*WithStatus=*/true> {
  explicit AttentionOp(const Backend& backend) : backend(backend) {
    OrtCustomOp::version = kApiVersion;
  }

  OrtStatusPtr CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** kernel) const {
    return AsStatus(GetName(), [&] {
      *kernel = std::make_unique<AttentionKernel>(info, kType, backend).release();
      return Ort::Status();
    });
  }

  const char* GetName() const { return "MoHAttention"; }
  const char* GetExecutionProviderType() const { return backend.ExecutionProvider(); }
  size_t GetInputTypeCount() const { return 5; }
  ONNXTensorElementDataType GetInputType(size_t index) const {
    // A mask has a dtype of its own.
    return index == 4 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED : ElementType(kType);
  }
  OrtCustomOpInputOutputCharacteristic GetInputCharacteristic(size_t index) const {
    return index == 4 ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
  }
  size_t GetOutputTypeCount() const { return 1; }
  ONNXTensorElementDataType GetOutputType(size_t) const { return ElementType(kType); }

  const Backend& backend;
};

}  // namespace moh::ort
