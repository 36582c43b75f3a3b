#include "cpu/kernels.h"

#include "cpu/simd/amx.h"
#include "cpu/simd/processor.h"
#include "cpu/simd/targets.h"
#include "hwy/highway.h"

namespace moh::cpu {

#define MOH_DECLARE_KERNELS(NAMESPACE)                                                       \
  namespace NAMESPACE {                                                                      \
  extern const bool kHasBFloat16;                                                            \
  void attention(const AttentionArgs& args, Compute compute, const Parallel& parallel);      \
  void aggregated_attention(const AggregatedAttentionArgs& args, const Parallel& parallel);  \
  void router(const RouterArgs& args, const Parallel& parallel);                             \
  size_t packed_taps_size(const TokenConvArgs& args);                                        \
  void pack_taps(const TokenConvArgs& args, float* packed);                                  \
  void token_conv(const TokenConvArgs& args, const float* packed, const Parallel& parallel); \
  size_t packed_weight_size(int32_t depth, int32_t columns);                                 \
  void pack_weight(const WeightArgs& args, float* packed, const Parallel& parallel);         \
  void query_projection(const QueryProjectionArgs& args, const float* packed,                \
                        const Parallel& parallel);                                           \
  void output_projection(const OutputProjectionArgs& args, const float* packed,              \
                         const Parallel& parallel);                                          \
  void nbits_product(const NBitsProductArgs& args, const NBitsWeight& weight,                \
                     const Parallel& parallel);                                              \
  void query_projection_nbits(const QueryProjectionArgs& args, const NBitsWeight& weight,    \
                              const Parallel& parallel);                                     \
  void output_projection_nbits(const OutputProjectionArgs& args, const NBitsWeight& weight,  \
                               const Parallel& parallel);                                    \
  }
#define MOH_DECLARE_ATTENTION(NAMESPACE, NAME)                                     \
  namespace NAMESPACE {                                                            \
  void NAME(const AttentionArgs& args, Compute compute, const Parallel& parallel); \
  }
#define MOH_KERNELS(NAME, NAMESPACE)                                                         \
  Kernels {                                                                                  \
    NAME, NAMESPACE::kHasBFloat16, NAMESPACE::attention, NAMESPACE::aggregated_attention,    \
        NAMESPACE::router, NAMESPACE::packed_taps_size, NAMESPACE::pack_taps,                \
        NAMESPACE::token_conv, NAMESPACE::packed_weight_size, NAMESPACE::pack_weight,        \
        NAMESPACE::query_projection, NAMESPACE::output_projection, NAMESPACE::nbits_product, \
        NAMESPACE::query_projection_nbits, NAMESPACE::output_projection_nbits                \
  }

namespace {

// The same kernels with other products of bfloat16 in an attention.
Kernels with_attention(const char* name, Kernels kernels, decltype(Kernels::attention) attention) {
  kernels.instruction_set = name;
  kernels.has_bfloat16 = true;
  kernels.attention = attention;
  return kernels;
}

}  // namespace

#if HWY_ARCH_X86

MOH_DECLARE_KERNELS(N_SSE2)
MOH_DECLARE_KERNELS(N_AVX2)
MOH_DECLARE_KERNELS(N_AVX3)
MOH_DECLARE_KERNELS(N_AVX3_ZEN4)
MOH_DECLARE_ATTENTION(N_AVX3_ZEN4, amx_attention)
MOH_DECLARE_ATTENTION(N_SSE2, emulated_amx_attention)

namespace {

std::vector<Kernels> find_usable() {
  std::vector<Kernels> usable;
  if (has_avx512_bfloat16() && may_use_amx_bfloat16()) {
    usable.push_back(with_attention("amx_bf16", MOH_KERNELS("avx512_bf16", N_AVX3_ZEN4),
                                    N_AVX3_ZEN4::amx_attention));
  }
  if (has_avx512_bfloat16()) {
    usable.push_back(MOH_KERNELS("avx512_bf16", N_AVX3_ZEN4));
  }
  if (has_avx512()) {
    usable.push_back(MOH_KERNELS("avx512", N_AVX3));
  }
  if (has_avx2()) {
    usable.push_back(MOH_KERNELS("avx2", N_AVX2));
  }
  usable.push_back(MOH_KERNELS("baseline", N_SSE2));
  return usable;
}

constexpr auto* const kEmulatedAmxAttention = N_SSE2::emulated_amx_attention;

}  // namespace

#else

MOH_DECLARE_KERNELS(HWY_NAMESPACE)
MOH_DECLARE_ATTENTION(HWY_NAMESPACE, emulated_amx_attention)

namespace {

std::vector<Kernels> find_usable() { return {MOH_KERNELS("baseline", HWY_NAMESPACE)}; }

constexpr auto* const kEmulatedAmxAttention = HWY_NAMESPACE::emulated_amx_attention;

}  // namespace

#endif

const std::vector<Kernels>& usable_kernels() {
  // Never destroyed: threads may still compute when the process ends.
  static const auto& usable = *new std::vector<Kernels>(find_usable());
  return usable;
}

const Kernels* find_kernels(const std::string& instruction_set) {
  for (const Kernels& kernels : usable_kernels()) {
    if (instruction_set.empty() || instruction_set == kernels.instruction_set) {
      return &kernels;
    }
  }
  static const auto& emulated_amx =
      *new Kernels(with_attention("emulated_amx", usable_kernels().back(), kEmulatedAmxAttention));
  return instruction_set == emulated_amx.instruction_set ? &emulated_amx : nullptr;
}

}  // namespace moh::cpu
