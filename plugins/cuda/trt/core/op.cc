#include "cuda/trt/core/ops.h"

namespace moh::trt {

const std::vector<const OpInfo*>& all_ops() {
  static const std::vector<const OpInfo*> ops{&router_info(), &attention_info(),
                                              &aggregated_attention_info()};
  return ops;
}

OpInfo::OpInfo(const OpContract& contract, const std::vector<Shapes>& shapes,
               const std::vector<FieldSpec>& more_fields, std::vector<AxisInfo> axes,
               std::vector<Limit> limits, std::unique_ptr<Op> (*create)(const Fields&))
    : name(contract.name), axes(std::move(axes)), limits(std::move(limits)), create(create) {
  for (size_t i = 0; i < contract.num_inputs; ++i) {
    const InputContract& input = contract.inputs[i];
    inputs.push_back({input.name, input.optional, input.type, shapes.at(i)});
  }
  for (size_t i = 0; i < contract.num_attributes; ++i) {
    const AttributeContract& attribute = contract.attributes[i];
    fields.push_back({attribute.name, attribute.type, attribute.required});
  }
  fields.insert(fields.end(), more_fields.begin(), more_fields.end());
}

void check_status(cuda::Status status) {
  if (status != cuda::Status::kOk) {
    throw Refusal(moh_cuda_last_error());
  }
}

}  // namespace moh::trt
