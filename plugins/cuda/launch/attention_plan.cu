#include "cuda/launch/attention_plan.h"

#include <algorithm>

#include "cuda/device/integers.cuh"
#include "cuda/launch/attention_heads.h"

namespace moh::cuda {
namespace {

constexpr size_t kAlignment = 256;
constexpr int32_t kKeysUnit = 64;  // a multiple of every tile of keys
// Rows whose tiles alternate in the grid, longest first: enough for every GPU to have the next ones
// at hand when a block ends, and few enough for their keys and values to stay in its L2 cache.
constexpr int32_t kSectionRows = 1 << 16;

size_t pair_count(const AttentionArgs& args) {
  return static_cast<size_t>(args.batch) * static_cast<size_t>(args.kv_heads);
}

int32_t partial_columns(const AttentionArgs& args) { return round_up(args.value_dim, 8); }

int32_t element_size(const AttentionArgs& args) { return args.dtype == DType::kFloat32 ? 4 : 2; }

// Whether 16 bytes can be copied at a time.
bool has_vectors(const void* data, const HeadStrides& strides, int32_t features,
                 int32_t element_bytes) {
  const auto whole = [&](ptrdiff_t elements) { return elements * element_bytes % 16 == 0; };
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && whole(features) && whole(strides.batch) &&
         whole(strides.head) && whole(strides.token);
}

// Sections of about the same size.
int32_t section_pairs(int32_t pairs, int32_t rows_per_pair) {
  const int32_t most = std::max(kSectionRows / std::max(rows_per_pair, 1), 1);
  return std::max(ceil_div(pairs, std::max(ceil_div(pairs, most), 1)), 1);
}

}  // namespace

bool has_block(const AttentionArgs& args, AttentionBlock block) {
  return block == AttentionBlock::k64By16 || (element_size(args) == 2 && !has_query_mask(args) &&
                                              std::max(args.head_dim, args.value_dim) <= 128);
}

int32_t keys_per_split(const AttentionArgs& args, int32_t splits) {
  return std::max(round_up(ceil_div(args.keys, splits), kKeysUnit), kKeysUnit);
}

MaskMap mask_map(const AttentionArgs& args, AttentionBlock block) {
  MaskMap map{};
  if (!has_query_mask(args)) {
    return map;
  }
  map.batches = args.mask.batch == 0 ? 1 : args.batch;
  map.heads = args.mask.head == 0 ? 1 : args.q_heads;
  map.parts = args.mask.query == 0 ? 1 : ceil_div(args.queries, kMapQueries);
  map.tile_keys = attend_kernel_of(args, block).tile_keys;
  map.tiles = ceil_div(args.keys, map.tile_keys);
  return map;
}

WorkspaceLayout lay_out(const AttentionArgs& args, const AttentionChoice& choice) {
  const size_t pairs = pair_count(args), rows = pairs * static_cast<size_t>(rows_per_pair(args));
  const bool sparse = choice.tactic == AttentionTactic::kSparse;
  const size_t partial_rows =
      choice.key_splits > 1 ? static_cast<size_t>(choice.key_splits) * rows : 0;
  WorkspaceLayout layout{};
  const auto place = [&](size_t elements, size_t bytes_each) {
    const size_t offset = layout.bytes;
    layout.bytes += round_up(elements * bytes_each, kAlignment);
    return offset;
  };
  layout.counts = place(sparse ? pairs : 0, sizeof(int32_t));
  layout.rows = place(sparse ? rows : 0, sizeof(int32_t));
  layout.max_and_sum = place(partial_rows, 2 * sizeof(float));
  layout.output = place(partial_rows * partial_columns(args), sizeof(float));
  layout.mask_map = place(entries_of(mask_map(args, choice.block)), 1);
  return layout;
}

AttentionParams attention_params(const AttentionArgs& args, const AttentionChoice& choice,
                                 void* workspace) {
  const WorkspaceLayout layout = lay_out(args, choice);
  auto* bytes = static_cast<unsigned char*>(workspace);
  AttentionParams params{};
  params.args = args;
  if (choice.tactic == AttentionTactic::kSparse) {
    params.counts = reinterpret_cast<const int32_t*>(bytes + layout.counts);
    params.rows = reinterpret_cast<const int32_t*>(bytes + layout.rows);
  }
  if (choice.key_splits > 1) {
    params.partials = {reinterpret_cast<float*>(bytes + layout.max_and_sum),
                       reinterpret_cast<float*>(bytes + layout.output), partial_columns(args)};
  }
  if (has_query_mask(args)) {
    params.map = mask_map(args, choice.block);
    params.map.states = bytes + layout.mask_map;
  }
  params.group = args.q_heads / args.kv_heads;
  params.rows_per_pair = rows_per_pair(args);
  params.row_tiles = ceil_div(params.rows_per_pair, rows_of(choice.block));
  params.section_pairs = section_pairs(args.batch * args.kv_heads, params.rows_per_pair);
  params.splits = choice.key_splits;
  params.keys_per_split = keys_per_split(args, choice.key_splits);
  params.scale_log2 = static_cast<float>(args.scale * 1.4426950408889634);
  const int32_t size = element_size(args);
  params.key_mask = has_key_mask(args);
  params.query_vectors = has_vectors(args.query, args.query_strides, args.head_dim, size);
  params.key_vectors = has_vectors(args.key, args.key_strides, args.head_dim, size);
  params.value_vectors = has_vectors(args.value, args.value_strides, args.value_dim, size);
  params.output_vectors = has_vectors(args.output, args.output_strides, args.value_dim, size);
  return params;
}

CompactParams compact_params(const AttentionArgs& args, const AttentionParams& params) {
  CompactParams compact{};
  compact.args = args;
  compact.rows = const_cast<int32_t*>(params.rows);
  compact.counts = const_cast<int32_t*>(params.counts);
  compact.pairs = args.batch * args.kv_heads;
  compact.group = params.group;
  compact.rows_per_pair = params.rows_per_pair;
  compact.output_vectors = params.output_vectors;
  return compact;
}

}  // namespace moh::cuda
