// An op as ONNX Runtime wants it described: all of it follows from the op's contract.
#pragma once

#include "moh/op_contract.h"
#include "ort/ort.h"

namespace moh::ort {

// A node: its kernel, whose failures are given the name of the op.
template <const OpContract& kOp, class Kernel>
struct Node {
  OrtStatusPtr ComputeV2(OrtKernelContext* context) const {
    return AsStatus(kOp.name, [&] {
      Ort::KernelContext wrapped(context);
      return kernel.Compute(wrapped);
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
    return AsStatus(kOp.name, [&] {
      *node = new Node<kOp, Kernel>{Kernel(info, kType, shared)};
      return Ort::Status();
    });
  }

  const char* GetName() const { return kOp.name; }
  const char* GetExecutionProviderType() const { return ProviderOf(shared, 0); }
  size_t GetInputTypeCount() const { return kOp.num_inputs; }
  ONNXTensorElementDataType GetInputType(size_t index) const {
    return kOp.inputs[index].own_dtype ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED
                                       : ElementType(kType);
  }
  OrtCustomOpInputOutputCharacteristic GetInputCharacteristic(size_t index) const {
    return kOp.inputs[index].optional ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
  }
  size_t GetOutputTypeCount() const { return 1; }
  ONNXTensorElementDataType GetOutputType(size_t) const { return ElementType(kType); }

  const Shared& shared;

 private:
  template <class T>
  static auto ProviderOf(const T& shared, int) -> decltype(shared.ExecutionProvider()) {
    return shared.ExecutionProvider();
  }
  template <class T>
  static const char* ProviderOf(const T&, long) {
    return nullptr;
  }
};

}  // namespace moh::ort
