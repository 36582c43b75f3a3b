#pragma once

#include <cstdint>

#include "moh/cuda.h"

// The pair and the tile (counted from its last; -1: none) of each of pairs * row_tiles blocks, one
// pair of numbers after the other. tiles: of each pair.
extern "C" void moh_cuda_attention_order(int32_t pairs, int32_t row_tiles, int32_t section_pairs,
                                         const int32_t* tiles, int32_t* order);

// Blocks of a choice's kernel that a multiprocessor has at a time.
extern "C" int32_t moh_cuda_attention_resident_blocks(const moh::AttentionArgs* args,
                                                      const moh::cuda::AttentionChoice* choice,
                                                      const moh::cuda::Device* device);
