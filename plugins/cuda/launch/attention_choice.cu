// Which way an attention takes, and why.
#include <algorithm>
#include <cmath>

#include "cuda/device/integers.cuh"
#include "cuda/launch/attention_model.h"
#include "cuda/launch/attention_plan.h"

namespace moh::cuda {
namespace {

// A part of the keys that is worth a block.
constexpr int32_t kLeastKeysPerSplit = 256;

// Parts of the keys with which the blocks that have rows fill the GPU once; or two parts, since
// causal blocks end one after the other.
int32_t most_key_splits(const AttentionArgs& args, AttentionTactic tactic, AttentionBlock block,
                        const Device& device, float open_share) {
  const double share = tactic == AttentionTactic::kSparse ? open_share : 1.0;
  const double tiles = std::ceil(share * rows_per_pair(args) / rows_of(block));
  const double blocks = std::max(tiles * args.batch * args.kv_heads, 1.0);
  const double room = double{1} * device.multiprocessors * resident_blocks(args, block, device);
  const int32_t most = std::min(args.keys / kLeastKeysPerSplit, kMaxKeySplits);
  return std::clamp(static_cast<int32_t>(std::max(room / blocks, 2.0)), 1, std::max(most, 1));
}

const char* reason(const AttentionArgs& args, const AttentionChoice& choice) {
  const bool split = choice.key_splits > 1;
  if (choice.tactic == AttentionTactic::kSparse) {
    return split
               ? "skipped rows are expected to save more than their list costs; keys are split to "
                 "occupy the GPU"
               : "skipped rows are expected to save more than their list costs";
  }
  if (rows_per_pair(args) <= kAttentionTileRows) {
    return split ? "one tile has all rows of a key/value head; keys are split to occupy the GPU"
                 : "one tile has all rows of a key/value head: there is nothing to skip";
  }
  return split ? "a list of the open rows is expected to cost what it saves; keys are split to "
                 "occupy the GPU"
               : "a list of the open rows is expected to cost what it saves";
}

}  // namespace

AttentionChoice choose_attention(const AttentionArgs& args, const Device& device,
                                 float open_share) {
  AttentionChoice best{AttentionTactic::kDense, 1, AttentionBlock::k64By16, nullptr};
  double least_us = estimated_us(args, best, device, open_share);
  const auto consider = [&](const AttentionChoice& choice) {
    const double us = estimated_us(args, choice, device, open_share);
    if (us < least_us) {
      best = choice;
      least_us = us;
    }
  };
  for (const auto block :
       {AttentionBlock::k64By16, AttentionBlock::k64By32, AttentionBlock::k128By32}) {
    if (!has_block(args, block)) {
      continue;
    }
    for (const auto tactic : {AttentionTactic::kDense, AttentionTactic::kSparse}) {
      if (tactic == AttentionTactic::kSparse && rows_per_pair(args) <= kAttentionTileRows) {
        continue;
      }
      const int32_t most = most_key_splits(args, tactic, block, device, open_share);
      for (const int32_t splits : {1, 2, most / 2, most}) {
        if (splits >= 1 && splits <= most) {
          consider({tactic, splits, block, nullptr});
        }
      }
    }
  }
  best.reason = reason(args, best);
  return best;
}

}  // namespace moh::cuda
