#include "ort/aggregated_attention_op.h"

namespace moh::ort {
namespace {

// Kernels count tokens and features in 32 bits, with room to round up; offsets have 64.
constexpr int64_t kMost = int64_t{1} << 30;

constexpr const char* kNames[] = {"Q",
                                  "K",
                                  "V",
                                  "pooled_K",
                                  "pooled_V",
                                  "gates",
                                  "query_embedding",
                                  "query_scale",
                                  "window_bias",
                                  "pooled_bias",
                                  "window_tokens",
                                  "window_offset"};

int64_t Odd(const Ort::ConstKernelInfo& node, const char* name) {
  const auto size = Attribute<int64_t>(node, name);
  if (size < 1 || size > kMost || size % 2 == 0) {
    throw std::invalid_argument(std::string(name) + " is " + std::to_string(size) +
                                "; expected an odd number, 1 or more.");
  }
  return size;
}

int64_t Positive(const Ort::ConstKernelInfo& node, const char* name) {
  const auto size = Attribute<int64_t>(node, name);
  if (size < 1 || size > kMost) {
    throw std::invalid_argument(std::string(name) + " is " + std::to_string(size) +
                                "; expected 1 to 2^30.");
  }
  return size;
}

}  // namespace

AggregatedAttentionKernel::AggregatedAttentionKernel(const OrtKernelInfo* info, DType dtype,
                                                     const Backend& backend)
    : dtype_(dtype), backend_(backend) {
  const Ort::ConstKernelInfo node(info);
  heads_ = Positive(node, "num_heads");
  height_ = Positive(node, "height");
  width_ = Positive(node, "width");
  kernel_height_ = Odd(node, "kernel_height");
  kernel_width_ = Odd(node, "kernel_width");
  const auto normalize = Attribute<int64_t>(node, "normalize", 0);
  if (normalize != 0 && normalize != 1) {
    throw std::invalid_argument("normalize is " + std::to_string(normalize) + "; expected 0 or 1.");
  }
  normalize_ = normalize == 1;
  epsilon_ = Attribute<float>(node, "epsilon", 1e-12f);
  if (!(epsilon_ > 0)) {
    throw std::invalid_argument("epsilon is " + std::to_string(epsilon_) +
                                "; expected more than 0.");
  }
  if (height_ * width_ > kMost || kernel_height_ * kernel_width_ > kMost) {
    throw std::invalid_argument(
        "the image is " + std::to_string(height_) + " x " + std::to_string(width_) +
        " and the window " + std::to_string(kernel_height_) + " x " +
        std::to_string(kernel_width_) + "; expected up to 2^30 tokens each.");
  }
}

OrtStatusPtr AggregatedAttentionKernel::ComputeV2(OrtKernelContext* context) const {
  return AsStatus("MoHAggregatedAttention", [&] {
    Ort::KernelContext wrapped(context);
    return Compute(wrapped);
  });
}

Ort::Status AggregatedAttentionKernel::Compute(Ort::KernelContext& context) const {
  Inputs in;
  for (size_t i = 0; i < kInputs; ++i) {
    in[i] = ReadInput(context, i);
  }
  AggregatedAttentionArgs args{};
  if (auto status = ReadSizes(in, args); !status.IsOK()) {
    return status;
  }
  if (auto status = CheckShapes(in, args); !status.IsOK()) {
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
  return backend_.AggregatedAttention(args, context);
}

Ort::Status AggregatedAttentionKernel::ReadSizes(const Inputs& in,
                                                 AggregatedAttentionArgs& args) const {
  const Shape &query = in[0].shape, &pooled = in[3].shape;
  const int64_t tokens = height_ * width_;
  if (query.size() != 3 || query[1] != tokens || query[2] % heads_ != 0) {
    return InvalidArgument("MoHAggregatedAttention: Q is ", Text(query), "; expected [batch, ",
                           tokens, ", heads * dim] with ", heads_, " heads, for an image of ",
                           height_, " x ", width_, ".");
  }
  if (pooled.size() != 3 || pooled[1] == 0) {
    return InvalidArgument("MoHAggregatedAttention: pooled_K is ", Text(pooled),
                           "; expected [batch, pooled, heads * dim] with at least one token.");
  }
  if (query[0] > kMost || query[2] > kMost || pooled[1] > kMost) {
    return InvalidArgument("MoHAggregatedAttention: Q is ", Text(query), " and pooled_K ",
                           Text(pooled), "; expected sizes up to 2^30.");
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

Ort::Status AggregatedAttentionKernel::CheckShapes(const Inputs& in,
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
      return InvalidArgument("MoHAggregatedAttention: ", kNames[i], " is ", Text(in[i].shape),
                             "; expected ", Text(expected[i]), ".");
    }
  }
  return Ort::Status();
}

}  // namespace moh::ort
