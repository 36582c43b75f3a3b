#include "cpu/ort/nbits_projection_op.h"

namespace moh::ort {
namespace {

// The attributes of both ops, which are the same.
namespace attributes = contract::query_projection_n_bits;

constexpr int64_t kBlock = 32;

// For what has no threads of a session.
const cpu::Parallel kAlone{[](void*, cpu::Parallel::Body body, size_t count, void* argument) {
                             for (size_t i = 0; i < count; ++i) {
                               body(argument, i);
                             }
                           },
                           nullptr};

}  // namespace

NBitsProjectionKernel::NBitsProjectionKernel(const OrtKernelInfo* info, const char* name,
                                             Heads heads, const cpu::Kernels& kernels)
    : name_(name), place_(heads), kernels_(kernels) {
  const Ort::ConstKernelInfo node(info);
  heads_ = int_attribute(node, attributes::kNumHeads);
  rows_ = int_attribute(node, attributes::kInFeatures);
  columns_ = int_attribute(node, attributes::kOutFeatures);
  const bool in_columns = heads == Heads::kInColumns;
  if (const int64_t by_head = in_columns ? columns_ : rows_; by_head % heads_ != 0) {
    throw std::invalid_argument((in_columns ? "out_features is " : "in_features is ") +
                                std::to_string(by_head) + "; expected a multiple of its " +
                                std::to_string(heads_) + " heads.");
  }
  Input weight, scales;
  // Of another shape they are refused at the first call.
  if (read_constant(node, 1, weight) && read_constant(node, 3, scales) &&
      weight.shape == weight_shape() && scales.shape == scales_shape()) {
    constant_ = pack(weight.data, scales.data, kAlone);
  }
}

Shape NBitsProjectionKernel::weight_shape() const {
  return {columns_, (rows_ + kBlock - 1) / kBlock, kBlock / 2};
}

Shape NBitsProjectionKernel::scales_shape() const {
  return {columns_, (rows_ + kBlock - 1) / kBlock};
}

NBitsProjectionKernel::Packed NBitsProjectionKernel::pack(const void* weight, const void* scales,
                                                          const cpu::Parallel& parallel) const {
  const NBitsWeightArgs args{static_cast<const uint8_t*>(weight), static_cast<const float*>(scales),
                             static_cast<int32_t>(rows_), static_cast<int32_t>(columns_),
                             place_ == Heads::kInRows ? static_cast<int32_t>(heads_) : 0};
  const size_t bytes = kernels_.packed_digits_size(args.depth, args.columns);
  constexpr size_t kUnit = cpu::kWeightAlignment;
  Packed packed(static_cast<uint8_t*>(std::aligned_alloc(kUnit, (bytes / kUnit + 1) * kUnit)));
  if (packed == nullptr) {
    throw std::bad_alloc();
  }
  kernels_.pack_digits(args, packed.get(), parallel);
  return packed;
}

Ort::Status NBitsProjectionKernel::compute(Ort::KernelContext& context) const {
  const Tensors in{read_input(context, 0), read_input(context, 1), read_input(context, 2),
                   read_input(context, 3), read_input(context, 4)};
  if (auto status = check_shapes(in); !status.IsOK()) {
    return status;
  }
  Shape shape = in.input.shape;
  shape[2] = columns_;
  void* const output = context.GetOutput(0, shape).GetTensorMutableRawData();
  const cpu::Parallel threads = session_threads(context);
  if (constant_ != nullptr) {
    run(in, constant_.get(), output, threads);
  } else {
    run(in, pack(in.weight.data, in.scales.data, threads).get(), output, threads);
  }
  return Ort::Status();
}

Ort::Status NBitsProjectionKernel::check_shapes(const Tensors& in) const {
  const Shape& x = in.input.shape;
  if (x.size() != 3 || x[2] != rows_) {
    return invalid_argument(name_, ": X is ", shape_text(x), "; expected [batch, tokens, ", rows_,
                            "].");
  }
  if (x[0] * x[1] > kMost) {
    return invalid_argument(name_, ": X is ", shape_text(x), "; expected tokens up to 2^30.");
  }
  const struct {
    const char* name;
    const Input& input;
    Shape expected;
  } others[] = {{"W", in.weight, weight_shape()},
                {"gates", in.gates, {x[0], x[1], heads_}},
                {"scales", in.scales, scales_shape()},
                {"bias", in.bias, {columns_}}};
  for (const auto& other : others) {
    if (other.input.present && other.input.shape != other.expected) {
      return invalid_argument(name_, ": ", other.name, " is ", shape_text(other.input.shape),
                              "; expected ", shape_text(other.expected), ".");
    }
  }
  return Ort::Status();
}

void NBitsProjectionKernel::run(const Tensors& in, const uint8_t* packed, void* output,
                                const cpu::Parallel& parallel) const {
  const int64_t tokens = in.input.shape[0] * in.input.shape[1];
  const auto rows = static_cast<int32_t>(rows_), columns = static_cast<int32_t>(columns_);
  const auto heads = static_cast<int32_t>(heads_);
  if (place_ == Heads::kInColumns) {
    const QueryProjectionArgs args{DType::kFloat32, in.input.data, in.gates.data, in.bias.data,
                                   output,          tokens,        rows,          heads,
                                   columns / heads};
    kernels_.query_projection_nbits(args, packed, parallel);
  } else {
    const OutputProjectionArgs args{DType::kFloat32, in.input.data, in.gates.data,
                                    in.bias.data,    output,        tokens,
                                    columns,         heads,         rows / heads};
    kernels_.output_projection_nbits(args, packed, parallel);
  }
}

}  // namespace moh::ort
