// Which instruction sets of x86-64 code may use here: the processor has them, and the operating
// system saves their registers. Asked of the processor itself: the compiler's own function,
// __builtin_cpu_supports, needs help of its runtime library and says no to everything where that is
// another one (zig's).
#pragma once

namespace moh::cpu {

// Each with all that the compiler may use beside it; see HWY_TARGET_STR_* in Highway.
bool has_avx2();
bool has_avx512();
bool has_avx512_bfloat16();

}  // namespace moh::cpu
