#include "cpu/ort/nbits_product_op.h"

namespace moh::ort {

namespace op = contract::mat_mul_n_bits;

NBitsProductKernel::NBitsProductKernel(const OrtKernelInfo* info, DType,
                                       const cpu::Kernels& kernels)
    : kernels_(kernels) {
  const Ort::ConstKernelInfo node(info);
  sizes_ = {int_attribute(node, op::kInFeatures), int_attribute(node, op::kOutFeatures),
            int_attribute(node, op::kBits)};
  if (sizes_.bits != 4 && sizes_.bits != 8) {
    throw std::invalid_argument("bits is " + std::to_string(sizes_.bits) + "; expected 4 or 8.");
  }
}

Ort::Status NBitsProductKernel::compute(Ort::KernelContext& context) const {
  const char* const name = op::kOp.name;
  const Input input = read_input(context, 0), digits = read_input(context, 1);
  const Input scales = read_input(context, 2);
  Shape shape = input.shape;
  if (shape.size() < 2 || shape.back() != sizes_.rows) {
    return invalid_argument(name, ": X is ", shape_text(shape), "; expected [..., tokens, ",
                            sizes_.rows, "].");
  }
  int64_t tokens = 1;
  for (size_t axis = 0; axis + 1 < shape.size(); ++axis) {
    tokens *= shape[axis];
  }
  if (tokens > kMost) {
    return invalid_argument(name, ": X is ", shape_text(shape), "; expected tokens up to 2^30.");
  }
  const struct {
    const char* name;
    const Input& input;
    Shape expected;
  } others[] = {{"W", digits, sizes_.digits_shape()}, {"scales", scales, sizes_.scales_shape()}};
  for (const auto& other : others) {
    if (other.input.shape != other.expected) {
      return invalid_argument(name, ": ", other.name, " is ", shape_text(other.input.shape),
                              "; expected ", shape_text(other.expected), ".");
    }
  }
  shape.back() = sizes_.columns;
  float* const output = context.GetOutput(0, shape).GetTensorMutableData<float>();
  const NBitsProductArgs args{static_cast<const float*>(input.data), output, tokens};
  kernels_.nbits_product(args, sizes_.weight(digits, scales), session_threads(context));
  return Ort::Status();
}

}  // namespace moh::ort
