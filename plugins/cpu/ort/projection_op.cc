#include "cpu/ort/projection_op.h"

namespace moh::ort {
namespace {

// For what has no threads of a session.
const cpu::Parallel kAlone{[](void*, cpu::Parallel::Body body, size_t count, void* argument) {
                             for (size_t i = 0; i < count; ++i) {
                               body(argument, i);
                             }
                           },
                           nullptr};

}  // namespace

ProjectionKernel::ProjectionKernel(const OrtKernelInfo* info, Projection projection, DType dtype,
                                   const cpu::Kernels& kernels)
    : projection_(projection), dtype_(dtype), kernels_(kernels) {
  const Ort::ConstKernelInfo node(info);
  heads_ = int_attribute(node, contract::query_projection::kNumHeads);
  int is_constant = 0;
  const Ort::ConstValue weight = node.GetTensorConstantInput(1, &is_constant);
  if (is_constant != 0) {
    const Shape shape = weight.GetTensorTypeAndShapeInfo().GetShape();
    if (shape.size() == 2 && shape[0] <= kMost && shape[1] <= kMost) {  // others are refused later
      constant_ = pack(weight.GetTensorRawData(), shape, kAlone);
    }
  }
}

ProjectionKernel::Packed ProjectionKernel::pack(const void* weight, const Shape& shape,
                                                const cpu::Parallel& parallel) const {
  const WeightArgs args{dtype_, weight, static_cast<int32_t>(shape[0]),
                        static_cast<int32_t>(shape[1])};
  const size_t bytes = kernels_.packed_weight_size(args.depth, args.columns) * sizeof(float);
  constexpr size_t kUnit = cpu::kWeightAlignment;
  Packed packed(static_cast<float*>(std::aligned_alloc(kUnit, (bytes / kUnit + 1) * kUnit)));
  if (packed == nullptr) {
    throw std::bad_alloc();
  }
  kernels_.pack_weight(args, packed.get(), parallel);
  return packed;
}

Ort::Status ProjectionKernel::compute(Ort::KernelContext& context) const {
  const Tensors in{read_input(context, 0), read_input(context, 1), read_input(context, 2),
                   read_input(context, 3)};
  if (auto status = check_shapes(in); !status.IsOK()) {
    return status;
  }
  Shape shape = in.input.shape;
  shape[2] = in.weight.shape[1];
  void* const output = context.GetOutput(0, shape).GetTensorMutableRawData();
  const cpu::Parallel threads = session_threads(context);
  if (constant_ != nullptr) {
    run(in, constant_.get(), output, threads);
  } else {
    run(in, pack(in.weight.data, in.weight.shape, threads).get(), output, threads);
  }
  return Ort::Status();
}

Ort::Status ProjectionKernel::check_shapes(const Tensors& in) const {
  const Shape &x = in.input.shape, &weight = in.weight.shape;
  if (x.size() != 3 || weight.size() != 2 || weight[0] != x[2]) {
    return invalid_argument(name(), ": X is ", shape_text(x), " and W ", shape_text(weight),
                            "; expected [batch, tokens, K] and [K, N].");
  }
  const bool query = projection_ == Projection::kQuery;
  const int64_t by_head = weight[query ? 1 : 0];
  if (by_head % heads_ != 0) {
    return invalid_argument(name(), ": W is ", shape_text(weight), "; expected a multiple of its ",
                            heads_, " heads as number of ", query ? "columns." : "rows.");
  }
  const Shape gates{x[0], x[1], heads_};
  if (in.gates.shape != gates) {
    return invalid_argument(name(), ": gates is ", shape_text(in.gates.shape), "; expected ",
                            shape_text(gates), ".");
  }
  const Shape bias{weight[1]};
  if (in.bias.present && in.bias.shape != bias) {
    return invalid_argument(name(), ": bias is ", shape_text(in.bias.shape), "; expected ",
                            shape_text(bias), ".");
  }
  if (x[0] * x[1] > kMost || weight[0] > kMost || weight[1] > kMost) {
    return invalid_argument(name(), ": X is ", shape_text(x), " and W ", shape_text(weight),
                            "; expected tokens, rows and columns up to 2^30.");
  }
  return Ort::Status();
}

void ProjectionKernel::run(const Tensors& in, const float* packed, void* output,
                           const cpu::Parallel& parallel) const {
  const Shape &x = in.input.shape, &weight = in.weight.shape;
  const int64_t tokens = x[0] * x[1];
  const auto rows = static_cast<int32_t>(weight[0]), columns = static_cast<int32_t>(weight[1]);
  const auto heads = static_cast<int32_t>(heads_);
  if (projection_ == Projection::kQuery) {
    const QueryProjectionArgs args{dtype_, in.input.data, in.gates.data, in.bias.data,   output,
                                   tokens, rows,          heads,         columns / heads};
    kernels_.query_projection(args, packed, parallel);
  } else {
    const OutputProjectionArgs args{dtype_, in.input.data, in.gates.data, in.bias.data, output,
                                    tokens, columns,       heads,         rows / heads};
    kernels_.output_projection(args, packed, parallel);
  }
}

const char* ProjectionKernel::name() const {
  return projection_ == Projection::kQuery ? contract::query_projection::kOp.name
                                           : contract::output_projection::kOp.name;
}

}  // namespace moh::ort
