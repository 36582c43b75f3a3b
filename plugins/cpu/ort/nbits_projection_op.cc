#include "cpu/ort/nbits_projection_op.h"

namespace moh::ort {
namespace {

// The attributes of both ops, which are the same.
namespace attributes = contract::query_projection_n_bits;

constexpr int64_t kBits = 4;

}  // namespace

NBitsProjectionKernel::NBitsProjectionKernel(const OrtKernelInfo* info, const char* name,
                                             Heads heads, const cpu::Kernels& kernels)
    : name_(name), place_(heads), kernels_(kernels) {
  const Ort::ConstKernelInfo node(info);
  heads_ = int_attribute(node, attributes::kNumHeads);
  sizes_ = {int_attribute(node, attributes::kInFeatures),
            int_attribute(node, attributes::kOutFeatures), kBits};
  const bool in_columns = heads == Heads::kInColumns;
  if (const int64_t by_head = in_columns ? sizes_.columns : sizes_.rows; by_head % heads_ != 0) {
    throw std::invalid_argument((in_columns ? "out_features is " : "in_features is ") +
                                std::to_string(by_head) + "; expected a multiple of its " +
                                std::to_string(heads_) + " heads.");
  }
}

Ort::Status NBitsProjectionKernel::compute(Ort::KernelContext& context) const {
  const Tensors in{read_input(context, 0), read_input(context, 1), read_input(context, 2),
                   read_input(context, 3), read_input(context, 4)};
  if (auto status = check_shapes(in); !status.IsOK()) {
    return status;
  }
  Shape shape = in.input.shape;
  shape[2] = sizes_.columns;
  void* const output = context.GetOutput(0, shape).GetTensorMutableRawData();
  const int64_t tokens = shape[0] * shape[1];
  const auto rows = static_cast<int32_t>(sizes_.rows), heads = static_cast<int32_t>(heads_);
  const auto columns = static_cast<int32_t>(sizes_.columns);
  const NBitsWeight weight = sizes_.weight(in.weight, in.scales);
  const cpu::Parallel threads = session_threads(context);
  if (place_ == Heads::kInColumns) {
    const QueryProjectionArgs args{DType::kFloat32, in.input.data, in.gates.data, in.bias.data,
                                   output,          tokens,        rows,          heads,
                                   columns / heads};
    kernels_.query_projection_nbits(args, weight, threads);
  } else {
    const OutputProjectionArgs args{DType::kFloat32, in.input.data, in.gates.data,
                                    in.bias.data,    output,        tokens,
                                    columns,         heads,         rows / heads};
    kernels_.output_projection_nbits(args, weight, threads);
  }
  return Ort::Status();
}

Ort::Status NBitsProjectionKernel::check_shapes(const Tensors& in) const {
  const Shape& x = in.input.shape;
  if (x.size() != 3 || x[2] != sizes_.rows) {
    return invalid_argument(name_, ": X is ", shape_text(x), "; expected [batch, tokens, ",
                            sizes_.rows, "].");
  }
  if (x[0] * x[1] > kMost) {
    return invalid_argument(name_, ": X is ", shape_text(x), "; expected tokens up to 2^30.");
  }
  const struct {
    const char* name;
    const Input& input;
    Shape expected;
  } others[] = {{"W", in.weight, sizes_.digits_shape()},
                {"gates", in.gates, {x[0], x[1], heads_}},
                {"scales", in.scales, sizes_.scales_shape()},
                {"bias", in.bias, {sizes_.columns}}};
  for (const auto& other : others) {
    if (other.input.present && other.input.shape != other.expected) {
      return invalid_argument(name_, ": ", other.name, " is ", shape_text(other.input.shape),
                              "; expected ", shape_text(other.expected), ".");
    }
  }
  return Ort::Status();
}

}  // namespace moh::ort
