#include "cuda/conformance/schedule.h"

#include "cuda/kernels/attention/order.cuh"
#include "cuda/launch/attention_model.h"

void moh_cuda_attention_order(int32_t pairs, int32_t row_tiles, int32_t section_pairs,
                              const int32_t* tiles, int32_t* order) {
  for (int32_t block = 0; block < pairs * row_tiles; ++block) {
    const moh::cuda::Turn turn = moh::cuda::turn_of_block(block, pairs, row_tiles, section_pairs);
    *order++ = turn.pair;
    *order++ = moh::cuda::tile_of_turn(turn.rank, tiles[turn.pair], row_tiles);
  }
}

int32_t moh_cuda_attention_resident_blocks(const moh::AttentionArgs* args,
                                           const moh::cuda::AttentionChoice* choice,
                                           const moh::cuda::Device* device) {
  return moh::cuda::resident_blocks(*args, choice->block, *device);
}
