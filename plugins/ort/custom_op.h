// An op as ONNX Runtime wants it described: all of it follows from the op's contract.
#pragma once

#include "moh/op_contract.h"
#include "ort/ort.h"

namespace moh::ort {

// A node: its kernel, whose failures are given the name of the op.
template <const OpContract& kOp, class Kernel>
struct Node {
  OrtStatusPtr ComputeV2(OrtKernelContext* context) const {
    return as_status(kOp.name, [&] {
      Ort::KernelContext wrapped(context);
      return kernel.compute(wrapped);
    });
  }

  Kernel kernel;
};

// The op for tensors of one dtype. A kernel is made of a node's description, the dtype, and
// `Shared`: what all nodes run on. If that has an execution provider, so has the op.
template <const OpContract& kOp, DType kType, class Kernel, class Shared>
struct CustomOp : Ort::CustomOpBase<CustomOp<kOp, kType, Kernel, Shared>, Node<kOp, Kernel>,
                                    /*WithStatus=*/true> {
  explicit CustomOp(const Shared& shared) : shared(shared) { OrtCustomOp::version = kApiVersion; }

  OrtStatusPtr CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** node) const {
    return as_status(kOp.name, [&] {
      *node = new Node<kOp, Kernel>{Kernel(info, kType, shared)};
      return Ort::Status();
    });
  }

  const char* GetName() const { return kOp.name; }
  const char* GetExecutionProviderType() const { return provider_of(shared, 0); }
  size_t GetInputTypeCount() const { return kOp.num_inputs; }
  ONNXTensorElementDataType GetInputType(size_t index) const {
    switch (kOp.inputs[index].type) {
      case InputType::kShared:
        return element_type(kType);
      case InputType::kMask:
        return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
      case InputType::kPacked:
        return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
      default:
        return element_type(DType::kInt64);
    }
  }
  OrtCustomOpInputOutputCharacteristic GetInputCharacteristic(size_t index) const {
    return kOp.inputs[index].optional ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
  }
  size_t GetOutputTypeCount() const { return 1; }
  ONNXTensorElementDataType GetOutputType(size_t) const { return element_type(kType); }

  const Shared& shared;

 private:
  template <class T>
  static auto provider_of(const T& shared, int) -> decltype(shared.execution_provider()) {
    return shared.execution_provider();
  }
  template <class T>
  static const char* provider_of(const T&, long) {
    return nullptr;
  }
};

}  // namespace moh::ort
