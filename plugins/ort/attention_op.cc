#include "ort/attention_op.h"

namespace moh::ort {
namespace {

constexpr const char* kName = contract::attention::kOp.name;

// What the operands of a node's products may be rounded to. It is no part of what the op means: a
// writer adds it where no session entry will say so (moh.compute_type).
constexpr const char* kComputeTypes[] = {"float32", "bfloat16"};
constexpr AttributeContract kComputeType =
    AttributeContract{"compute_type", AttributeType::kText}.one_of(kComputeTypes).default_to(0);

const Backend& backend_for(const Ort::ConstKernelInfo& node, const Backend& backend) {
  const bool rounds = choice_attribute(node, kComputeType) == 1;
  return rounds ? backend.with_bfloat16_products() : backend;
}

// [batch, tokens, heads * dim] or [batch, heads, tokens, dim].
struct HeadsShape {
  int64_t batch, heads, tokens, dim;
};

bool read_heads(const Shape& shape, int64_t heads, HeadsShape& out) {
  if (shape.size() == 4) {
    out = {shape[0], shape[1], shape[2], shape[3]};
    return shape[1] == heads;
  }
  if (shape.size() != 3 || shape[2] % heads != 0) {
    return false;
  }
  out = {shape[0], heads, shape[1], shape[2] / heads};
  return true;
}

HeadStrides strides(size_t rank, int64_t heads, int64_t tokens, int64_t dim) {
  const ptrdiff_t batch = heads * tokens * dim;
  return rank == 4 ? HeadStrides{batch, tokens * dim, dim} : HeadStrides{batch, dim, heads * dim};
}

Ort::Status wrong_heads(const char* name, const Shape& shape, int64_t heads) {
  return invalid_argument(kName, ": ", name, " is ", shape_text(shape),
                          "; expected [batch, tokens, heads * dim] or ",
                          "[batch, heads, tokens, dim] with ", heads, " heads.");
}

}  // namespace

AttentionKernel::AttentionKernel(const OrtKernelInfo* info, DType dtype, const Backend& backend)
    : dtype_(dtype), backend_(backend_for(Ort::ConstKernelInfo(info), backend)) {
  const Ort::ConstKernelInfo node(info);
  q_heads_ = int_attribute(node, contract::attention::kQNumHeads);
  kv_heads_ = int_attribute(node, contract::attention::kKvNumHeads);
  causal_ = flag_attribute(node, contract::attention::kIsCausal);
  scale_ = number_attribute<float>(node, contract::attention::kScale);
  if (q_heads_ % kv_heads_ != 0) {
    throw std::invalid_argument("q_num_heads is " + std::to_string(q_heads_) +
                                " and kv_num_heads " + std::to_string(kv_heads_) +
                                "; expected the first to be a multiple of the second.");
  }
}

Ort::Status AttentionKernel::compute(Ort::KernelContext& context) const {
  const Tensors in{read_input(context, 0), read_input(context, 1), read_input(context, 2),
                   read_input(context, 3), read_input(context, 4), read_input(context, 5)};
  AttentionArgs args{};
  args.dtype = dtype_;
  if (auto status = read_sizes(in, args); !status.IsOK()) {
    return status;
  }
  if (auto status = check_gates(in, args); !status.IsOK()) {
    return status;
  }
  if (in.mask.present) {
    if (auto status = read_mask(in.mask, args); !status.IsOK()) {
      return status;
    }
  }
  if (in.lengths.present) {
    if (auto status = read_lengths(in.lengths, args); !status.IsOK()) {
      return status;
    }
  }

  Shape shape = in.query.shape;
  shape.back() = (shape.size() == 3 ? q_heads_ : 1) * args.value_dim;
  args.output = context.GetOutput(0, shape).GetTensorMutableRawData();
  return backend_.attention(args, context);
}

Ort::Status AttentionKernel::read_sizes(const Tensors& in, AttentionArgs& args) const {
  HeadsShape query, key, value;
  if (!read_heads(in.query.shape, q_heads_, query)) {
    return wrong_heads("Q", in.query.shape, q_heads_);
  }
  if (!read_heads(in.key.shape, kv_heads_, key)) {
    return wrong_heads("K", in.key.shape, kv_heads_);
  }
  if (!read_heads(in.value.shape, kv_heads_, value)) {
    return wrong_heads("V", in.value.shape, kv_heads_);
  }
  const size_t rank = in.query.shape.size();
  if (in.key.shape.size() != rank || in.value.shape.size() != rank || key.batch != query.batch ||
      value.batch != query.batch || value.tokens != key.tokens || key.dim != query.dim) {
    return invalid_argument(
        kName, ": Q is ", shape_text(in.query.shape), ", K ", shape_text(in.key.shape), " and V ",
        shape_text(in.value.shape),
        "; expected one rank and batch size, K and V of one length, and Q and K of ",
        "one head size.");
  }
  if (query.batch > kMost || query.tokens * q_heads_ > kMost || key.tokens > kMost ||
      query.dim > kMost || value.dim > kMost) {
    return invalid_argument(kName, ": Q is ", shape_text(in.query.shape), " and V ",
                            shape_text(in.value.shape),
                            "; expected sizes, and queries times heads, up to 2^30.");
  }
  args.query = in.query.data;
  args.key = in.key.data;
  args.value = in.value.data;
  args.gates = in.gates.data;
  args.query_strides = strides(rank, q_heads_, query.tokens, query.dim);
  args.key_strides = strides(rank, kv_heads_, key.tokens, key.dim);
  args.value_strides = strides(rank, kv_heads_, key.tokens, value.dim);
  args.output_strides = strides(rank, q_heads_, query.tokens, value.dim);
  args.batch = static_cast<int32_t>(query.batch);
  args.q_heads = static_cast<int32_t>(q_heads_);
  args.kv_heads = static_cast<int32_t>(kv_heads_);
  args.queries = static_cast<int32_t>(query.tokens);
  args.keys = static_cast<int32_t>(key.tokens);
  args.head_dim = static_cast<int32_t>(query.dim);
  args.value_dim = static_cast<int32_t>(value.dim);
  args.scale = scale_;
  args.causal = causal_;
  return Ort::Status();
}

Ort::Status AttentionKernel::check_gates(const Tensors& in, const AttentionArgs& args) {
  const Shape expected{args.batch, args.queries, args.q_heads};
  if (in.gates.shape == expected) {
    return Ort::Status();
  }
  return invalid_argument(kName, ": gates is ", shape_text(in.gates.shape), "; expected ",
                          shape_text(expected), ".");
}

Ort::Status AttentionKernel::read_mask(const Input& mask, AttentionArgs& args) {
  switch (mask.type) {
    case element_type(DType::kBool):
      args.mask.dtype = DType::kBool;
      break;
    case element_type(DType::kFloat32):
      args.mask.dtype = DType::kFloat32;
      break;
    case element_type(DType::kFloat16):
      args.mask.dtype = DType::kFloat16;
      break;
    case element_type(DType::kBFloat16):
      args.mask.dtype = DType::kBFloat16;
      break;
    default:
      return invalid_argument(kName, ": attn_mask has ONNX element type ",
                              static_cast<int>(mask.type), "; expected bool, ",
                              contract::kFloatTypesText, ".");
  }
  const Shape target{args.batch, args.q_heads, args.queries, args.keys};
  const size_t rank = mask.shape.size();
  ptrdiff_t* const strides[] = {&args.mask.batch, &args.mask.head, &args.mask.query,
                                &args.mask.key};
  bool fits = rank >= 1 && rank <= target.size();
  ptrdiff_t stride = 1;
  for (size_t from_end = 1; fits && from_end <= rank; ++from_end) {
    const int64_t size = mask.shape[rank - from_end], wanted = target[target.size() - from_end];
    fits = size == wanted || size == 1;
    *strides[target.size() - from_end] = size == 1 ? 0 : stride;
    stride *= size;
  }
  if (!fits) {
    return invalid_argument(kName, ": attn_mask is ", shape_text(mask.shape),
                            "; expected rank 1 to 4, broadcastable to ", shape_text(target), ".");
  }
  args.mask.data = mask.data;
  return Ort::Status();
}

// What the lengths are is the backend's to see: they are where it computes.
Ort::Status AttentionKernel::read_lengths(const Input& lengths, AttentionArgs& args) {
  const Shape expected{args.batch};
  if (lengths.shape != expected) {
    return invalid_argument(kName, ": nonpad_kv_seqlen is ", shape_text(lengths.shape),
                            "; expected ", shape_text(expected), ".");
  }
  args.nonpad_kv_seqlen = static_cast<const int64_t*>(lengths.data);
  return Ort::Status();
}

}  // namespace moh::ort
