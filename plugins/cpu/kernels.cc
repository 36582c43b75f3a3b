#include "cpu/kernels.h"

#include "cpu/simd/amx.h"
#include "cpu/simd/processor.h"
#include "cpu/simd/targets.h"
#include "hwy/highway.h"

namespace moh::cpu {

#define MOH_DECLARE(RESULT, NAME, PARAMETERS) RESULT NAME PARAMETERS;
#define MOH_DECLARE_ATTENTION(NAMESPACE, NAME)                                     \
  namespace NAMESPACE {                                                            \
  void NAME(const AttentionArgs& args, Compute compute, const Parallel& parallel); \
  }
#define MOH_ASSIGN(RESULT, NAME, PARAMETERS) kernels.NAME = NAME;
// Declares the kernels of a namespace, and `kernel_set`, which returns them.
#define MOH_KERNEL_SET(NAMESPACE)        \
  namespace NAMESPACE {                  \
  extern const bool kHasBFloat16;        \
  MOH_CPU_KERNELS(MOH_DECLARE)           \
  Kernels kernel_set(const char* name) { \
    Kernels kernels{};                   \
    kernels.instruction_set = name;      \
    kernels.has_bfloat16 = kHasBFloat16; \
    MOH_CPU_KERNELS(MOH_ASSIGN)          \
    return kernels;                      \
  }                                      \
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

MOH_KERNEL_SET(N_SSE2)
MOH_KERNEL_SET(N_AVX2)
MOH_KERNEL_SET(N_AVX3)
MOH_KERNEL_SET(N_AVX3_ZEN4)
MOH_DECLARE_ATTENTION(N_AVX3_ZEN4, amx_attention)
MOH_DECLARE_ATTENTION(N_SSE2, emulated_amx_attention)

namespace {

std::vector<Kernels> find_usable() {
  std::vector<Kernels> usable;
  if (has_avx512_bfloat16() && may_use_amx_bfloat16()) {
    usable.push_back(with_attention("amx_bf16", N_AVX3_ZEN4::kernel_set("avx512_bf16"),
                                    N_AVX3_ZEN4::amx_attention));
  }
  if (has_avx512_bfloat16()) {
    usable.push_back(N_AVX3_ZEN4::kernel_set("avx512_bf16"));
  }
  if (has_avx512()) {
    usable.push_back(N_AVX3::kernel_set("avx512"));
  }
  if (has_avx2()) {
    usable.push_back(N_AVX2::kernel_set("avx2"));
  }
  usable.push_back(N_SSE2::kernel_set("baseline"));
  return usable;
}

constexpr auto* const kEmulatedAmxAttention = N_SSE2::emulated_amx_attention;

}  // namespace

#else

MOH_KERNEL_SET(HWY_NAMESPACE)
MOH_DECLARE_ATTENTION(HWY_NAMESPACE, emulated_amx_attention)

namespace {

std::vector<Kernels> find_usable() { return {HWY_NAMESPACE::kernel_set("baseline")}; }

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
