#include "cuda/trt/core/attention_sizes.h"

#include "cuda/trt/core/ops.h"

namespace moh::trt {
namespace {

constexpr size_t kMask = 4, kLengths = 5, kRanges = 6;

// [batch, heads, tokens, dim] or, of rank 3, [batch, tokens, heads * dim].
HeadStrides strides(int rank, int64_t heads, int64_t tokens, int64_t dim) {
  const int64_t batch = heads * tokens * dim;
  return rank == 4 ? HeadStrides{batch, tokens * dim, dim} : HeadStrides{batch, dim, heads * dim};
}

// Sizes of the scores, [B, Hq, S, T].
std::array<int64_t, 4> score_sizes(const Sizes& sizes) {
  return {sizes['B'], sizes['H'], sizes['S'], sizes['T']};
}

void check_mask(const Tensor& mask, const Sizes& sizes) {
  const auto scores = score_sizes(sizes);
  for (int i = 0; i < mask.rank; ++i) {
    const int64_t size = mask.from_end(i), wanted = scores[static_cast<size_t>(3 - i)];
    if (size != kUnknown && wanted != kUnknown && size != 1 && size != wanted) {
      throw Refusal("attn_mask is ", shape_text(mask), "; expected sizes of 1 or those of [",
                    scores[0], ", ", scores[1], ", ", scores[2], ", ", scores[3], "], the scores.");
    }
  }
}

void check_ranges(const Sizes& sizes) {
  const int64_t batch = sizes['R'], wanted = sizes['B'], numbers = sizes['N'];
  if (batch != kUnknown && wanted != kUnknown && batch != 1 && batch != wanted) {
    throw Refusal("batch size of key_ranges is ", batch, "; expected 1 or ", wanted, ".");
  }
  if (numbers != kUnknown && numbers != 2) {
    throw Refusal("last size of key_ranges is ", numbers, "; expected 2.");
  }
}

AttentionMask mask_of(const Tensor& mask) {
  AttentionMask view;
  ptrdiff_t* const strides[] = {&view.key, &view.query, &view.head, &view.batch};
  ptrdiff_t stride = 1;
  for (int i = 0; i < mask.rank; ++i) {
    *strides[i] = mask.from_end(i) == 1 ? 0 : stride;
    stride *= mask.from_end(i);
  }
  view.data = &view;
  view.dtype = mask.dtype.value_or(DType::kBool);
  return view;
}

}  // namespace

AttentionAttributes::AttentionAttributes(const Fields& fields)
    : q_heads(fields.int_value(contract::attention::kQNumHeads)),
      kv_heads(fields.int_value(contract::attention::kKvNumHeads)),
      scale(fields.float_value(contract::attention::kScale)),
      causal(fields.flag(contract::attention::kIsCausal)) {
  if (q_heads % kv_heads != 0) {
    throw Refusal("field q_num_heads is ", q_heads, "; expected a multiple of kv_num_heads, ",
                  kv_heads, ".");
  }
}

std::vector<Number> AttentionAttributes::serialize() const {
  return {{contract::attention::kQNumHeads.name, q_heads},
          {contract::attention::kKvNumHeads.name, kv_heads},
          {contract::attention::kScale.name, scale},
          {contract::attention::kIsCausal.name, int32_t{causal ? 1 : 0}}};
}

Sizes read_sizes(const Inputs& inputs, const AttentionAttributes& attributes) {
  check_types(attention_info(), inputs);
  Sizes sizes(attention_info());
  sizes.set('H', attributes.q_heads, "q_num_heads");
  sizes.set('G', attributes.kv_heads, "kv_num_heads");
  measure(attention_info(), inputs, sizes);
  sizes.divide('q', attributes.q_heads, 'D', "Q");
  sizes.divide('k', attributes.kv_heads, 'D', "K");
  sizes.divide('v', attributes.kv_heads, 'E', "V");
  if (inputs[kMask].present) {
    check_mask(inputs[kMask], sizes);
  }
  if (inputs[kRanges].present) {
    check_ranges(sizes);
  }
  sizes.check_limits();
  return sizes;
}

AttentionArgs arguments(const Inputs& inputs, const AttentionAttributes& attributes) {
  const Sizes sizes = read_sizes(inputs, attributes);
  const int rank = inputs[0].rank;
  AttentionArgs args{};
  args.dtype = dtype_of(attention_info(), inputs);
  args.query_strides = strides(rank, sizes['H'], sizes['S'], sizes['D']);
  args.key_strides = strides(rank, sizes['G'], sizes['T'], sizes['D']);
  args.value_strides = strides(rank, sizes['G'], sizes['T'], sizes['E']);
  args.output_strides = strides(rank, sizes['H'], sizes['S'], sizes['E']);
  if (inputs[kMask].present) {
    args.mask = mask_of(inputs[kMask]);
  }
  static constexpr int64_t kNothingToRead = 0;
  if (inputs[kLengths].present) {
    args.nonpad_kv_seqlen = &kNothingToRead;
  }
  if (inputs[kRanges].present) {
    args.key_ranges = &kNothingToRead;
    args.key_ranges_batch = sizes['R'] == 1 ? 0 : ptrdiff_t{2} * sizes['S'];
  }
  args.batch = static_cast<int32_t>(sizes['B']);
  args.q_heads = attributes.q_heads;
  args.kv_heads = attributes.kv_heads;
  args.queries = static_cast<int32_t>(sizes['S']);
  args.keys = static_cast<int32_t>(sizes['T']);
  args.head_dim = static_cast<int32_t>(sizes['D']);
  args.value_dim = static_cast<int32_t>(sizes['E']);
  args.scale = attributes.scale;
  args.causal = attributes.causal;
  return args;
}

}  // namespace moh::trt
