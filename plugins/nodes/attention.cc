#include "nodes/attention.h"

namespace moh::node {
namespace {

// [batch, tokens, heads * dim] or [batch, heads, tokens, dim].
struct Heads {
  int64_t batch, heads, tokens, dim;

  HeadStrides strides(size_t rank) const {
    const ptrdiff_t image = heads * tokens * dim;
    return rank == 4 ? HeadStrides{image, tokens * dim, dim} : HeadStrides{image, dim, heads * dim};
  }
};

Heads read_heads(const char* name, const Shape& shape, int64_t heads) {
  if (shape.size() == 4 && shape[1] == heads) {
    return {shape[0], shape[1], shape[2], shape[3]};
  }
  if (shape.size() == 3 && shape[2] % heads == 0) {
    return {shape[0], heads, shape[1], shape[2] / heads};
  }
  refuse(name, " is ", shape_text(shape), "; expected [batch, tokens, heads * dim] or ",
         "[batch, heads, tokens, dim] with ", heads, " heads.");
}

AttentionMask read_mask(const Tensor& tensor, const Shape& target) {
  AttentionMask mask;
  mask.data = tensor.data;
  mask.dtype = tensor.dtype;
  const size_t rank = tensor.shape.size();
  ptrdiff_t* const strides[] = {&mask.batch, &mask.head, &mask.query, &mask.key};
  bool fits = rank >= 1 && rank <= target.size();
  ptrdiff_t stride = 1;
  for (size_t from_end = 1; fits && from_end <= rank; ++from_end) {
    const int64_t size = tensor.shape[rank - from_end], wanted = target[target.size() - from_end];
    fits = size == wanted || size == 1;
    *strides[target.size() - from_end] = size == 1 ? 0 : stride;
    stride *= size;
  }
  if (!fits) {
    refuse("attn_mask is ", shape_text(tensor.shape), "; expected rank 1 to 4, broadcastable to ",
           shape_text(target), ".");
  }
  return mask;
}

// What they are is for `check_lengths` or a GPU to see.
const int64_t* read_lengths(const Tensor& tensor, int64_t batch) {
  if (tensor.shape != Shape{batch}) {
    refuse("nonpad_kv_seqlen is ", shape_text(tensor.shape), "; expected ", shape_text({batch}),
           ".");
  }
  return static_cast<const int64_t*>(tensor.data);
}

// Their values may be any; kernels hold them within the keys.
void read_ranges(const Tensor& tensor, AttentionArgs& args) {
  const bool shared = tensor.shape == Shape{1, args.queries, 2};
  if (!shared && tensor.shape != Shape{args.batch, args.queries, 2}) {
    refuse("key_ranges is ", shape_text(tensor.shape), "; expected ",
           shape_text({args.batch, args.queries, 2}), ", or 1 in place of the batch size.");
  }
  args.key_ranges = static_cast<const int64_t*>(tensor.data);
  args.key_ranges_batch = shared ? 0 : ptrdiff_t{2} * args.queries;
}

}  // namespace

void check_lengths(const AttentionArgs& args) {
  for (int32_t i = 0; args.nonpad_kv_seqlen != nullptr && i < args.batch; ++i) {
    const int64_t length = args.nonpad_kv_seqlen[i];
    if (length < 0 || length > args.keys) {
      refuse("nonpad_kv_seqlen[", i, "] is ", length, "; expected 0 to ", args.keys,
             ", the keys that there are.");
    }
  }
}

void Attention::check(const Attributes& attributes) {
  const int32_t q_heads = attributes.integer(contract::attention::kQNumHeads);
  const int32_t kv_heads = attributes.integer(contract::attention::kKvNumHeads);
  if (q_heads % kv_heads != 0) {
    refuse("q_num_heads is ", q_heads, " and kv_num_heads ", kv_heads,
           "; expected the first to be a multiple of the second.");
  }
}

Shape Attention::read(const Attributes& attributes, const Tensors& in, Args& args) {
  const Tensor &q = in[0], &k = in[1], &v = in[2], &gates = in[3], &attn_mask = in[4];
  const Tensor &lengths = in[5], &ranges = in[6];
  check(attributes);
  args.q_heads = attributes.integer(contract::attention::kQNumHeads);
  args.kv_heads = attributes.integer(contract::attention::kKvNumHeads);
  const Heads query = read_heads("Q", q.shape, args.q_heads);
  const Heads key = read_heads("K", k.shape, args.kv_heads);
  const Heads value = read_heads("V", v.shape, args.kv_heads);
  const size_t rank = q.shape.size();
  if (k.shape.size() != rank || v.shape.size() != rank || key.batch != query.batch ||
      value.batch != query.batch || value.tokens != key.tokens || key.dim != query.dim) {
    refuse("Q is ", shape_text(q.shape), ", K ", shape_text(k.shape), " and V ",
           shape_text(v.shape),
           "; expected one rank and batch size, K and V of one length, and Q and K of ",
           "one head size.");
  }
  if (query.batch > kMost || query.tokens * args.q_heads > kMost || key.tokens > kMost ||
      query.dim > kMost || value.dim > kMost) {
    refuse("Q is ", shape_text(q.shape), " and V ", shape_text(v.shape),
           "; expected sizes, and queries times heads, up to 2^30.");
  }
  const Shape of_gates{query.batch, query.tokens, args.q_heads};
  if (gates.shape != of_gates) {
    refuse("gates is ", shape_text(gates.shape), "; expected ", shape_text(of_gates), ".");
  }
  args.mask = {};
  if (attn_mask.present) {
    args.mask = read_mask(attn_mask, {query.batch, args.q_heads, query.tokens, key.tokens});
  }
  args.nonpad_kv_seqlen = nullptr;
  if (lengths.present) {
    args.nonpad_kv_seqlen = read_lengths(lengths, query.batch);
  }
  args.dtype = q.dtype;
  args.query = q.data;
  args.key = k.data;
  args.value = v.data;
  args.gates = gates.data;
  const Heads output{query.batch, query.heads, query.tokens, value.dim};
  args.query_strides = query.strides(rank);
  args.key_strides = key.strides(rank);
  args.value_strides = value.strides(rank);
  args.output_strides = output.strides(rank);
  args.batch = static_cast<int32_t>(query.batch);
  args.queries = static_cast<int32_t>(query.tokens);
  args.keys = static_cast<int32_t>(key.tokens);
  args.head_dim = static_cast<int32_t>(query.dim);
  args.value_dim = static_cast<int32_t>(value.dim);
  args.scale = attributes.number(contract::attention::kScale);
  args.causal = attributes.flag(contract::attention::kIsCausal);
  args.key_ranges = nullptr;
  args.key_ranges_batch = 0;
  if (ranges.present) {
    read_ranges(ranges, args);
  }
  Shape shape = q.shape;
  shape.back() = (rank == 3 ? output.heads : 1) * output.dim;
  return shape;
}

}  // namespace moh::node
