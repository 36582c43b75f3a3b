// The kernels, one set for each instruction set.
#pragma once

#include <string>
#include <vector>

#include "cpu/parallel.h"
#include "moh/aggregated_attention.h"
#include "moh/attention.h"
#include "moh/projection.h"
#include "moh/router.h"
#include "moh/token_conv.h"

namespace moh::cpu {

enum class Compute : uint8_t { kFloat32, kBFloat16 };

constexpr size_t kWeightAlignment = 64;

// Each function throws std::bad_alloc if there is no memory for its scratch, and nothing else.
struct Kernels {
  const char* instruction_set;
  bool has_bfloat16;  // else Compute::kBFloat16 is computed in float32
  void (*attention)(const AttentionArgs& args, Compute compute, const Parallel& parallel);
  void (*aggregated_attention)(const AggregatedAttentionArgs& args, const Parallel& parallel);
  void (*router)(const RouterArgs& args, const Parallel& parallel);
  // Weight and biases are packed first, in float32: into packed_taps_size(args) numbers.
  size_t (*packed_taps_size)(const TokenConvArgs& args);
  void (*pack_taps)(const TokenConvArgs& args, float* packed);
  void (*token_conv)(const TokenConvArgs& args, const float* packed, const Parallel& parallel);
  // A weight is packed first, in float32: into packed_weight_size(depth, columns) numbers at an
  // address that vectors are loaded from (kWeightAlignment).
  size_t (*packed_weight_size)(int32_t depth, int32_t columns);
  void (*pack_weight)(const WeightArgs& args, float* packed, const Parallel& parallel);
  void (*query_projection)(const QueryProjectionArgs& args, const float* packed,
                           const Parallel& parallel);
  void (*output_projection)(const OutputProjectionArgs& args, const float* packed,
                            const Parallel& parallel);
  // A weight of few bits is read as it is stored. All else is float32.
  void (*nbits_product)(const NBitsProductArgs& args, const NBitsWeight& weight,
                        const Parallel& parallel);
  // With weights of 4 bits.
  void (*query_projection_nbits)(const QueryProjectionArgs& args, const NBitsWeight& weight,
                                 const Parallel& parallel);
  void (*output_projection_nbits)(const OutputProjectionArgs& args, const NBitsWeight& weight,
                                  const Parallel& parallel);
};

// The sets that this machine can run, best first; the last one is "baseline", which every machine
// can.
const std::vector<Kernels>& usable_kernels();

// The set of that name, or null if this library or this machine does not have it. An empty name
// means the best. "emulated_amx" is on no list: "baseline" with bfloat16 products as "amx_bf16" has
// them, in matrix registers that are emulated, for tests on any machine.
const Kernels* find_kernels(const std::string& instruction_set);

}  // namespace moh::cpu
