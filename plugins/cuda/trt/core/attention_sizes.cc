#include "cuda/trt/core/attention_sizes.h"

#include "cuda/trt/core/ops.h"

namespace moh::trt {
namespace {

constexpr size_t kMask = 4;

// [batch, heads, tokens, dim] or, of rank 3, [batch, tokens, heads * dim].
HeadStrides Strides(int rank, int64_t heads, int64_t tokens, int64_t dim) {
  const int64_t batch = heads * tokens * dim;
  return rank == 4 ? HeadStrides{batch, tokens * dim, dim} : HeadStrides{batch, dim, heads * dim};
}

// Sizes of the scores, [B, Hq, S, T].
std::array<int64_t, 4> ScoreSizes(const Sizes& sizes) {
  return {sizes['B'], sizes['H'], sizes['S'], sizes['T']};
}

void CheckMask(const Tensor& mask, const Sizes& sizes) {
  const auto scores = ScoreSizes(sizes);
  for (int i = 0; i < mask.rank; ++i) {
    const int64_t size = mask.FromEnd(i), wanted = scores[static_cast<size_t>(3 - i)];
    if (size != kUnknown && wanted != kUnknown && size != 1 && size != wanted) {
      throw Refusal("attn_mask is ", ShapeText(mask), "; expected sizes of 1 or those of [",
                    scores[0], ", ", scores[1], ", ", scores[2], ", ", scores[3], "], the scores.");
    }
  }
}

AttentionMask MaskOf(const Tensor& mask) {
  AttentionMask view;
  ptrdiff_t* const strides[] = {&view.key, &view.query, &view.head, &view.batch};
  ptrdiff_t stride = 1;
  for (int i = 0; i < mask.rank; ++i) {
    *strides[i] = mask.FromEnd(i) == 1 ? 0 : stride;
    stride *= mask.FromEnd(i);
  }
  view.data = &view;
  view.dtype = mask.dtype.value_or(DType::kBool);
  return view;
}

}  // namespace

AttentionAttributes::AttentionAttributes(const Fields& fields)
    : q_heads(fields.Int(contract::attention::kQNumHeads)),
      kv_heads(fields.Int(contract::attention::kKvNumHeads)),
      scale(fields.Float(contract::attention::kScale)),
      causal(fields.Flag(contract::attention::kIsCausal)) {
  if (q_heads % kv_heads != 0) {
    throw Refusal("field q_num_heads is ", q_heads, "; expected a multiple of kv_num_heads, ",
                  kv_heads, ".");
  }
}

std::vector<Number> AttentionAttributes::Serialize() const {
  return {{contract::attention::kQNumHeads.name, q_heads},
          {contract::attention::kKvNumHeads.name, kv_heads},
          {contract::attention::kScale.name, scale},
          {contract::attention::kIsCausal.name, int32_t{causal ? 1 : 0}}};
}

Sizes ReadSizes(const Inputs& inputs, const AttentionAttributes& attributes) {
  CheckTypes(AttentionInfo(), inputs);
  Sizes sizes(AttentionInfo());
  sizes.Set('H', attributes.q_heads, "q_num_heads");
  sizes.Set('G', attributes.kv_heads, "kv_num_heads");
  Measure(AttentionInfo(), inputs, sizes);
  sizes.Divide('q', attributes.q_heads, 'D', "Q");
  sizes.Divide('k', attributes.kv_heads, 'D', "K");
  sizes.Divide('v', attributes.kv_heads, 'E', "V");
  if (inputs[kMask].present) {
    CheckMask(inputs[kMask], sizes);
  }
  sizes.CheckLimits();
  return sizes;
}

AttentionArgs Arguments(const Inputs& inputs, const AttentionAttributes& attributes) {
  const Sizes sizes = ReadSizes(inputs, attributes);
  const int rank = inputs[0].rank;
  AttentionArgs args{};
  args.dtype = DTypeOf(AttentionInfo(), inputs);
  args.query_strides = Strides(rank, sizes['H'], sizes['S'], sizes['D']);
  args.key_strides = Strides(rank, sizes['G'], sizes['T'], sizes['D']);
  args.value_strides = Strides(rank, sizes['G'], sizes['T'], sizes['E']);
  args.output_strides = Strides(rank, sizes['H'], sizes['S'], sizes['E']);
  if (inputs[kMask].present) {
    args.mask = MaskOf(inputs[kMask]);
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
