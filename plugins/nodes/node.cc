#include "nodes/node.h"

#include "moh/op_contract.h"

namespace moh::node {

void check_inputs(const OpContract& op, const Tensors& in) {
  const Tensor* first = nullptr;
  for (size_t i = 0; i < op.num_inputs; ++i) {
    const InputContract& input = op.inputs[i];
    if (!in[i].present && !input.optional) {
      refuse(input.name, " is absent; the op needs it.");
    }
    if (!in[i].present) {
      continue;
    }
    if (input.type == InputType::kMask) {
      if (in[i].dtype == DType::kInt64) {
        refuse(input.name, " holds integers; expected bool, ", contract::kFloatTypesText, ".");
      }
      continue;
    }
    if ((input.type == InputType::kLengths) != (in[i].dtype == DType::kInt64)) {
      refuse(input.name, input.type == InputType::kLengths ? " holds no int64; expected int64."
                                                           : " is int64; expected floats.");
    }
    if (input.type == InputType::kLengths) {
      continue;
    }
    if (in[i].dtype == DType::kBool) {
      refuse(input.name, " is bool; expected floats.");
    }
    if (first != nullptr && in[i].dtype != first->dtype) {
      refuse(input.name, " is of another dtype than the inputs before it; expected one for all.");
    }
    first = first == nullptr ? &in[i] : first;
  }
}

}  // namespace moh::node
