#include "ort/attention_op.h"

namespace moh::ort {
namespace {

// What the operands of a node's products may be rounded to. It is no part of what the op means: a
// writer adds it where no session entry will say so (moh.compute_type).
constexpr const char* kComputeTypes[] = {"float32", "bfloat16"};
constexpr AttributeContract kComputeType =
    AttributeContract{"compute_type", AttributeType::kText}.one_of(kComputeTypes).default_to(0);

const Backend& backend_for(const Ort::ConstKernelInfo& node, const Backend& backend) {
  const bool rounds = choice_attribute(node, kComputeType) == 1;
  return rounds ? backend.with_bfloat16_products() : backend;
}

}  // namespace

AttentionKernel::AttentionKernel(const OrtKernelInfo* info, DType dtype, const Backend& backend)
    : NodeKernel(info, dtype, backend_for(Ort::ConstKernelInfo(info), backend)) {}

}  // namespace moh::ort
