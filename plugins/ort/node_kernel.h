// A node as ONNX Runtime gives it, in the words of nodes/, and a kernel that hands it to a backend.
#pragma once

#include <utility>
#include <vector>

#include "ort/backend.h"
#include "ort/ort.h"

namespace moh::ort {

// Every attribute of the contract; throws with what is wrong with one.
inline node::Attributes read_attributes(const Ort::ConstKernelInfo& info, const OpContract& op) {
  std::vector<double> values;
  for (size_t i = 0; i < op.num_attributes; ++i) {
    const AttributeContract& attribute = op.attributes[i];
    switch (attribute.type) {
      case AttributeType::kInt:
        values.push_back(static_cast<double>(int_attribute(info, attribute)));
        break;
      case AttributeType::kFloat:
        values.push_back(number_attribute<float>(info, attribute));
        break;
      default:
        values.push_back(choice_attribute(info, attribute));
    }
  }
  return {op, std::move(values)};
}

inline DType dtype_of(const Input& input, const InputContract& contract) {
  if (contract.type == InputType::kLengths) {
    return DType::kInt64;  // ONNX Runtime has seen to that
  }
  for (const DType dtype : {DType::kBool, DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    if (input.type == element_type(dtype)) {
      return dtype;
    }
  }
  // Only a mask's type is left to the op, since it may differ from that of the others.
  node::refuse(contract.name, " has ONNX element type ", static_cast<int>(input.type),
               "; expected bool, ", contract::kFloatTypesText, ".");
}

inline node::Tensor tensor_of(Input input, const InputContract& contract) {
  if (!input.present) {
    return {};
  }
  return {input.data, dtype_of(input, contract), std::move(input.shape), /*present=*/true};
}

inline node::Tensors read_tensors(const Ort::KernelContext& context, const OpContract& op) {
  node::Tensors tensors;
  tensors.reserve(op.num_inputs);
  for (size_t i = 0; i < op.num_inputs; ++i) {
    tensors.push_back(tensor_of(read_input(context, i), op.inputs[i]));
  }
  return tensors;
}

// Runs `call`, and makes a status of what nodes/ and kernels refuse.
template <typename Call>
Ort::Status unless_refused(const OpContract& op, const Call& call) {
  try {
    call();
    return Ort::Status();
  } catch (const std::invalid_argument& error) {
    return invalid_argument(op.name, ": ", error.what());
  }
}

inline Ort::Status run(const Backend& backend, AttentionArgs& args, void* output,
                       Ort::KernelContext& context) {
  args.output = output;
  return backend.attention(args, context);
}

inline Ort::Status run(const Backend& backend, AggregatedAttentionArgs& args, void* output,
                       Ort::KernelContext& context) {
  args.output = output;
  return backend.aggregated_attention(args, context);
}

inline Ort::Status run(const Backend& backend, RouterArgs& args, void* output,
                       Ort::KernelContext& context) {
  args.gates = output;
  return backend.router(args, context);
}

// `Reader` is one of nodes/: its contract, its kernel's arguments, and how they are read.
template <class Reader>
class NodeKernel {
 public:
  NodeKernel(const OrtKernelInfo* info, DType, const Backend& backend)
      : backend_(backend), attributes_(read_attributes(Ort::ConstKernelInfo(info), Reader::kOp)) {
    Reader::check(attributes_);
  }

  Ort::Status compute(Ort::KernelContext& context) const {
    typename Reader::Args args{};
    Shape shape;
    auto status = unless_refused(Reader::kOp, [&] {
      shape = Reader::read(attributes_, read_tensors(context, Reader::kOp), args);
    });
    if (!status.IsOK()) {
      return status;
    }
    return run(backend_, args, context.GetOutput(0, shape).GetTensorMutableRawData(), context);
  }

 private:
  const Backend& backend_;
  const node::Attributes attributes_;
};

}  // namespace moh::ort
