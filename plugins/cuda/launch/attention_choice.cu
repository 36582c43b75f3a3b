// Which way an attention takes, and why.
#include <algorithm>

#include "cuda/device/integers.cuh"
#include "cuda/kernels/attention/rows.cuh"
#include "cuda/launch/attention_plan.h"

namespace moh::cuda {
namespace {

static_assert(kTileRows == kAttentionTileRows);

// Up to this many rows of a key/value head, 4 tiles, what skipping rows saves is less than what the
// list and the last, partly filled tile cost. docs/adr/0014 has the arithmetic.
constexpr int32_t kFewRows = 4 * kTileRows;
// A part of the keys that is worth a block.
constexpr int32_t kLeastKeysPerSplit = 256;
// Blocks that a multiprocessor has at a time.
constexpr int32_t kBlocksPerMultiprocessor = 3;

// Enough parts to give work to every multiprocessor, once.
int32_t key_splits(const AttentionArgs& args, const Device& device) {
  const int64_t tiles = ceil_div(rows_per_pair(args), kTileRows);
  const int64_t blocks = int64_t{args.batch} * args.kv_heads * tiles;
  const int64_t room = int64_t{device.multiprocessors} * kBlocksPerMultiprocessor;
  if (blocks == 0 || blocks > device.multiprocessors / 2) {
    return 1;
  }
  const int64_t most = std::min<int64_t>(args.keys / kLeastKeysPerSplit, kMaxKeySplits);
  return static_cast<int32_t>(std::clamp<int64_t>(room / blocks, 1, std::max<int64_t>(most, 1)));
}

}  // namespace

AttentionChoice choose_attention(const AttentionArgs& args, const Device& device) {
  const int32_t splits = key_splits(args, device), rows = rows_per_pair(args);
  if (rows <= kTileRows) {
    return {AttentionTactic::kDense, splits,
            splits > 1
                ? "one tile has all rows of a key/value head; keys are split to occupy the GPU"
                : "one tile has all rows of a key/value head: there is nothing to skip"};
  }
  if (rows <= kFewRows) {
    return {AttentionTactic::kDense, splits,
            "up to 256 rows of a key/value head: listing them costs what skipping some saves"};
  }
  return {AttentionTactic::kSparse, splits,
          "more than 256 rows of a key/value head: skipped rows are skipped tiles"};
}

}  // namespace moh::cuda
