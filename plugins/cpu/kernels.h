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

// Every kernel: F(result, name, (parameters)). Each throws std::bad_alloc if there is no memory for
// its scratch, and nothing else. Another kernel is a line here, and a function of that name in
// namespace moh::cpu::HWY_NAMESPACE.
//
//   token_conv         weight and biases are packed first: packed_taps_size numbers of float32
//   *_projection       a weight is packed first: packed_weight_size numbers of float32, at an
//                      address that vectors are loaded from (kWeightAlignment)
//   nbits_*, *_nbits   a weight of few bits is read as it is stored, and all else is float32;
//                      projections have weights of 4 bits
#define MOH_CPU_KERNELS(F)                                                                        \
  F(void, attention, (const AttentionArgs&, Compute, const Parallel&))                            \
  F(void, aggregated_attention, (const AggregatedAttentionArgs&, const Parallel&))                \
  F(void, router, (const RouterArgs&, const Parallel&))                                           \
  F(size_t, packed_taps_size, (const TokenConvArgs&))                                             \
  F(void, pack_taps, (const TokenConvArgs&, float* packed))                                       \
  F(void, token_conv, (const TokenConvArgs&, const float* packed, const Parallel&))               \
  F(size_t, packed_weight_size, (int32_t depth, int32_t columns))                                 \
  F(void, pack_weight, (const WeightArgs&, float* packed, const Parallel&))                       \
  F(void, query_projection, (const QueryProjectionArgs&, const float* packed, const Parallel&))   \
  F(void, output_projection, (const OutputProjectionArgs&, const float* packed, const Parallel&)) \
  F(void, nbits_product, (const NBitsProductArgs&, const NBitsWeight&, const Parallel&))          \
  F(void, query_projection_nbits,                                                                 \
    (const QueryProjectionArgs&, const NBitsWeight&, const Parallel&))                            \
  F(void, output_projection_nbits,                                                                \
    (const OutputProjectionArgs&, const NBitsWeight&, const Parallel&))

struct Kernels {
  const char* instruction_set;
  bool has_bfloat16;  // else Compute::kBFloat16 is computed in float32
#define MOH_POINTER(RESULT, NAME, PARAMETERS) RESULT(*NAME) PARAMETERS;
  MOH_CPU_KERNELS(MOH_POINTER)
#undef MOH_POINTER
};

// The sets that this machine can run, best first; the last one is "baseline", which every machine
// can.
const std::vector<Kernels>& usable_kernels();

// The set of that name, or null if this library or this machine does not have it. An empty name
// means the best. "emulated_amx" is on no list: "baseline" with bfloat16 products as "amx_bf16" has
// them, in matrix registers that are emulated, for tests on any machine.
const Kernels* find_kernels(const std::string& instruction_set);

}  // namespace moh::cpu
