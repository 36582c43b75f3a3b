#include "ort/aggregated_attention_op.h"

namespace moh::ort {
namespace {

constexpr const char* kName = contract::aggregated_attention::kOp.name;

}  // namespace

AggregatedAttentionKernel::AggregatedAttentionKernel(const OrtKernelInfo* info, DType dtype,
                                                     const Backend& backend)
    : dtype_(dtype), backend_(backend) {
  const Ort::ConstKernelInfo node(info);
  heads_ = int_attribute(node, contract::aggregated_attention::kNumHeads);
  height_ = int_attribute(node, contract::aggregated_attention::kHeight);
  width_ = int_attribute(node, contract::aggregated_attention::kWidth);
  kernel_height_ = int_attribute(node, contract::aggregated_attention::kKernelHeight);
  kernel_width_ = int_attribute(node, contract::aggregated_attention::kKernelWidth);
  normalize_ = flag_attribute(node, contract::aggregated_attention::kNormalize);
  epsilon_ = number_attribute<float>(node, contract::aggregated_attention::kEpsilon);
  if (height_ * width_ > kMost || kernel_height_ * kernel_width_ > kMost) {
    throw std::invalid_argument(
        "the image is " + std::to_string(height_) + " x " + std::to_string(width_) +
        " and the window " + std::to_string(kernel_height_) + " x " +
        std::to_string(kernel_width_) + "; expected up to 2^30 tokens each.");
  }
}

Ort::Status AggregatedAttentionKernel::compute(Ort::KernelContext& context) const {
  Inputs in;
  for (size_t i = 0; i < kInputs; ++i) {
    in[i] = read_input(context, i);
  }
  AggregatedAttentionArgs args{};
  if (auto status = read_sizes(in, args); !status.IsOK()) {
    return status;
  }
  if (auto status = check_shapes(in, args); !status.IsOK()) {
    return status;
  }
  const void** const data[] = {&args.query,           &args.key,           &args.value,
                               &args.pooled_key,      &args.pooled_value,  &args.gates,
                               &args.query_embedding, &args.query_scale,   &args.window_bias,
                               &args.pooled_bias,     &args.window_tokens, &args.window_offset};
  for (size_t i = 0; i < kInputs; ++i) {
    *data[i] = in[i].data;
  }
  args.output = context.GetOutput(0, in[0].shape).GetTensorMutableRawData();
  return backend_.aggregated_attention(args, context);
}

Ort::Status AggregatedAttentionKernel::read_sizes(const Inputs& in,
                                                  AggregatedAttentionArgs& args) const {
  const Shape &query = in[0].shape, &pooled = in[3].shape;
  const int64_t tokens = height_ * width_;
  if (query.size() != 3 || query[1] != tokens || query[2] % heads_ != 0) {
    return invalid_argument(kName, ": Q is ", shape_text(query), "; expected [batch, ", tokens,
                            ", heads * dim] with ", heads_, " heads, for an image of ", height_,
                            " x ", width_, ".");
  }
  if (pooled.size() != 3 || pooled[1] == 0) {
    return invalid_argument(kName, ": pooled_K is ", shape_text(pooled),
                            "; expected [batch, pooled, heads * dim] with at least one token.");
  }
  if (query[0] > kMost || query[2] > kMost || pooled[1] > kMost) {
    return invalid_argument(kName, ": Q is ", shape_text(query), " and pooled_K ",
                            shape_text(pooled), "; expected sizes up to 2^30.");
  }
  args.dtype = dtype_;
  args.batch = static_cast<int32_t>(query[0]);
  args.heads = static_cast<int32_t>(heads_);
  args.head_dim = static_cast<int32_t>(query[2] / heads_);
  args.height = static_cast<int32_t>(height_);
  args.width = static_cast<int32_t>(width_);
  args.kernel_height = static_cast<int32_t>(kernel_height_);
  args.kernel_width = static_cast<int32_t>(kernel_width_);
  args.pooled = static_cast<int32_t>(pooled[1]);
  args.normalize = normalize_;
  args.epsilon = epsilon_;
  return Ort::Status();
}

Ort::Status AggregatedAttentionKernel::check_shapes(const Inputs& in,
                                                    const AggregatedAttentionArgs& args) {
  const int64_t batch = args.batch, heads = args.heads, dim = args.head_dim, pooled = args.pooled;
  const int64_t tokens = int64_t{args.height} * args.width;
  const int64_t offsets = int64_t{args.kernel_height} * args.kernel_width;
  const Shape image{batch, tokens, heads * dim}, small{batch, pooled, heads * dim};
  const Shape expected[] = {image,
                            image,
                            image,
                            small,
                            small,
                            {batch, tokens, heads},
                            {heads, dim},
                            {heads, tokens},
                            {heads, offsets},
                            {heads, tokens, pooled},
                            {heads, dim, offsets},
                            {heads, offsets}};
  for (size_t i = 0; i < kInputs; ++i) {
    if (in[i].present && in[i].shape != expected[i]) {
      return invalid_argument(kName, ": ", contract::aggregated_attention::kInputs[i].name, " is ",
                              shape_text(in[i].shape), "; expected ", shape_text(expected[i]), ".");
    }
  }
  return Ort::Status();
}

}  // namespace moh::ort
