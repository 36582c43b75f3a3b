// The expected time of an attention: a model of the GPU, for choices that were not measured.
#pragma once

#include "moh/cuda.h"

namespace moh::cuda {

// Microseconds of all launches of a choice, if open_share of the rows have open gates. Right to a
// quarter or so; what it is for is to tell ways apart. docs/cuda.md says what it is made of.
double estimated_us(const AttentionArgs& args, const AttentionChoice& choice, const Device& device,
                    float open_share);

// Blocks of a choice's kernel that a multiprocessor has at a time.
int32_t resident_blocks(const AttentionArgs& args, AttentionBlock block, const Device& device);

}  // namespace moh::cuda
