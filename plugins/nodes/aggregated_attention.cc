#include "nodes/aggregated_attention.h"

namespace moh::node {
namespace {

void check_shapes(const Tensors& in, const AggregatedAttentionArgs& args) {
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
  for (size_t i = 0; i < in.size(); ++i) {
    if (in[i].present && in[i].shape != expected[i]) {
      refuse(contract::aggregated_attention::kInputs[i].name, " is ", shape_text(in[i].shape),
             "; expected ", shape_text(expected[i]), ".");
    }
  }
}

}  // namespace

void AggregatedAttention::check(const Attributes& attributes) {
  namespace op = contract::aggregated_attention;
  const int64_t height = attributes.integer(op::kHeight), width = attributes.integer(op::kWidth);
  const int64_t kernel_height = attributes.integer(op::kKernelHeight);
  const int64_t kernel_width = attributes.integer(op::kKernelWidth);
  if (height * width > kMost || kernel_height * kernel_width > kMost) {
    refuse("the image is ", height, " x ", width, " and the window ", kernel_height, " x ",
           kernel_width, "; expected up to 2^30 tokens each.");
  }
}

Shape AggregatedAttention::read(const Attributes& attributes, const Tensors& in, Args& args) {
  namespace op = contract::aggregated_attention;
  check(attributes);
  args.heads = attributes.integer(op::kNumHeads);
  args.height = attributes.integer(op::kHeight);
  args.width = attributes.integer(op::kWidth);
  args.kernel_height = attributes.integer(op::kKernelHeight);
  args.kernel_width = attributes.integer(op::kKernelWidth);
  args.normalize = attributes.flag(op::kNormalize);
  args.epsilon = attributes.number(op::kEpsilon);
  const int64_t tokens = int64_t{args.height} * args.width;
  const Shape &query = in[0].shape, &pooled = in[3].shape;
  if (query.size() != 3 || query[1] != tokens || query[2] % args.heads != 0) {
    refuse("Q is ", shape_text(query), "; expected [batch, ", tokens, ", heads * dim] with ",
           args.heads, " heads, for an image of ", args.height, " x ", args.width, ".");
  }
  if (pooled.size() != 3 || pooled[1] == 0) {
    refuse("pooled_K is ", shape_text(pooled),
           "; expected [batch, pooled, heads * dim] with at least one token.");
  }
  if (query[0] > kMost || query[2] > kMost || pooled[1] > kMost) {
    refuse("Q is ", shape_text(query), " and pooled_K ", shape_text(pooled),
           "; expected sizes up to 2^30.");
  }
  args.dtype = in[0].dtype;
  args.batch = static_cast<int32_t>(query[0]);
  args.head_dim = static_cast<int32_t>(query[2] / args.heads);
  args.pooled = static_cast<int32_t>(pooled[1]);
  check_shapes(in, args);
  const void** const data[] = {&args.query,           &args.key,           &args.value,
                               &args.pooled_key,      &args.pooled_value,  &args.gates,
                               &args.query_embedding, &args.query_scale,   &args.window_bias,
                               &args.pooled_bias,     &args.window_tokens, &args.window_offset};
  for (size_t i = 0; i < in.size(); ++i) {
    *data[i] = in[i].data;
  }
  return query;
}

}  // namespace moh::node
