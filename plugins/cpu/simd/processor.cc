#include "cpu/simd/processor.h"

#if defined(__x86_64__)

#include <cpuid.h>

#include <cstdint>
#include <initializer_list>

namespace moh::cpu {
namespace {

constexpr uint32_t bits(std::initializer_list<int> places) {
  uint32_t word = 0;
  for (const int place : places) {
    word |= uint32_t{1} << place;
  }
  return word;
}

// Words of CPUID, and what of each names an instruction set; Intel's manual, volume 2A.
// Leaf 1, ECX.
constexpr uint32_t kPclmulFmaAesF16c = bits({1, 12, 25, 29});
constexpr uint32_t kSavedBySystem = bits({27});  // OSXSAVE: `saved` may be asked for
// Leaf 7, EBX.
constexpr uint32_t kBmiAvx2Bmi2 = bits({3, 5, 8});
constexpr uint32_t kAvx512 = bits({16, 17, 28, 30, 31});  // F, DQ, CD, BW, VL
// Leaf 7, ECX: VBMI, VBMI2, GFNI, VAES, VPCLMULQDQ, VNNI, BITALG, VPOPCNTDQ.
constexpr uint32_t kOfIceLake = bits({1, 6, 8, 9, 10, 11, 12, 14});
// Leaf 7, part 1, EAX.
constexpr uint32_t kBFloat16 = bits({5});

// Registers that the operating system saves (XCR0): those of SSE and the upper halves of AVX; also
// masks, upper halves and the upper 16 registers of AVX-512.
constexpr uint32_t kYmm = bits({1, 2}), kZmm = kYmm | bits({5, 6, 7});

struct Words {
  uint32_t leaf1_ecx = 0, leaf7_ebx = 0, leaf7_ecx = 0, leaf7_1_eax = 0, saved = 0;
};

constexpr bool has_all(uint32_t word, uint32_t wanted) { return (word & wanted) == wanted; }

Words ask() {
  Words words;
  uint32_t a, b, c, d;
  if (__get_cpuid(1, &a, &b, &c, &d)) {
    words.leaf1_ecx = c;
  }
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
    words.leaf7_ebx = b;
    words.leaf7_ecx = c;
    if (a >= 1) {
      __cpuid_count(7, 1, a, b, c, d);
      words.leaf7_1_eax = a;
    }
  }
  if (has_all(words.leaf1_ecx, kSavedBySystem)) {
    asm volatile("xgetbv" : "=a"(words.saved), "=d"(d) : "c"(0));
  }
  return words;
}

const Words& words() {
  static const Words asked = ask();
  return asked;
}

}  // namespace

bool has_avx2() {
  return has_all(words().saved, kYmm) && has_all(words().leaf1_ecx, kPclmulFmaAesF16c) &&
         has_all(words().leaf7_ebx, kBmiAvx2Bmi2);
}

bool has_avx512() {
  return has_avx2() && has_all(words().saved, kZmm) && has_all(words().leaf7_ebx, kAvx512);
}

bool has_avx512_bfloat16() {
  return has_avx512() && has_all(words().leaf7_ecx, kOfIceLake) &&
         has_all(words().leaf7_1_eax, kBFloat16);
}

}  // namespace moh::cpu

#endif
